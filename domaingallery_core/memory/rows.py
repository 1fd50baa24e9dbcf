"""A model that evaluates a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.denoiser import Condition, Denoiser


class FewRows:
    """Be the Denoiser that another one is, with at most so many rows of a batch at once.

    Sums over rows are then made in another order, so that the last digits of a gradient differ.

    Attributes:
        most: how many rows at once; None for any number.
        seen: the most rows that were asked for at once.
        evaluated: how many were evaluated in all.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.most: int | None = None
        self.seen = self.evaluated = 0

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return x0 (B C H W) for x (B C H W, in sigma space) at sigma (B)."""
        found = [self.denoiser(*some) for some in self._some(x, sigma, condition)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        """Return the features of the other model, each B C H W."""
        found = [self.denoiser.features(*some) for some in self._some(x, sigma, condition)]
        return found[0] if len(found) == 1 else [torch.cat(each) for each in zip(*found, strict=True)]

    def _some(
        self, x: Tensor, sigma: Tensor, condition: Condition
    ) -> Iterator[tuple[Tensor, Tensor, Condition]]:
        rows = x.shape[0]
        self.seen, self.evaluated = max(self.seen, rows), self.evaluated + rows
        most = self.most or rows
        for first in range(0, rows, most):
            part = slice(first, first + most)
            if most >= rows:
                yield x, sigma, condition
            else:
                yield x[part], sigma[part], _rows(condition, part)


def _rows(condition: Condition, part: slice) -> Condition:
    return condition.map(lambda tensor: tensor if tensor.shape[0] == 1 else tensor[part])
