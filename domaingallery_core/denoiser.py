"""The one view of a model that the core has: `(x, sigma, condition) -> x0`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import InputError
from .process import Process


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Hold what a model is conditioned on: named tensors with a leading batch dimension of 1 or B.

    `context` is B L D. Families may add others, such as the pooled `y` (B A) of SDXL.
    """

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {tensor.shape[0] for tensor in self.tensors.values()} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"Expected tensors with one batch size (or 1) in a condition, got {self.shapes()!r}."
            )

    def __len__(self) -> int:
        return max((tensor.shape[0] for tensor in self.tensors.values()), default=1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, for messages."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def expand(self, n: int) -> Condition:
        """Return the condition with `n` rows; rows are repeated as views, without a copy."""
        if len(self) not in (1, n):
            raise ValueError(f"Expected a condition with 1 or {n} rows, got {self.shapes()!r}.")
        return Condition({name: tensor.expand(n, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Join conditions row by row. Nothing is padded: the caller brings contexts of one length.

        Raises:
            InputError: the conditions hold different tensors or tensors of different shapes.
        """
        first = conditions[0]
        for other in conditions[1:]:
            same = first.tensors.keys() == other.tensors.keys() and all(
                first.tensors[name].shape[1:] == other.tensors[name].shape[1:] for name in first
            )
            if not same:
                raise InputError(
                    f"Expected prompts encoded alike, got {first.shapes()!r} and {other.shapes()!r}. "
                    "Encode all prompts with the same text encoder."
                )
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in first})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Return the condition on a device and, for its floating point tensors, in a dtype."""
        return Condition(
            {
                name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
                for name, tensor in self.tensors.items()
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditions:
    """Hold the conditions of a run.

    Attributes:
        target: "a [V] [N]".
        source: "a [N]"; None where no term needs source images.
        empty: ""; needed only for guidance inside the recurrent denoising.
        subject: "a [W] [N_subject]" as its target and "a [N_subject]" as its source (Eq. 7).
        more: the same for further categories, or sizes, of the domain.
    """

    target: Condition
    source: Condition | None = None
    empty: Condition | None = None
    subject: Conditions | None = None
    more: tuple[Conditions, ...] = ()

    def part(self, number: int) -> Conditions:
        """Return the conditions for `Dataset.parts()[number]`."""
        return self if number == 0 else replace(self.more[number - 1], subject=self.subject)

    def map(self, change: Callable[[Condition], Condition]) -> Conditions:
        """Return the conditions with each one changed."""
        return Conditions(
            target=change(self.target),
            source=None if self.source is None else change(self.source),
            empty=None if self.empty is None else change(self.empty),
            subject=None if self.subject is None else self.subject.map(change),
            more=tuple(part.map(change) for part in self.more),
        )


@runtime_checkable
class Denoiser(Protocol):
    """Predict clean images from noisy ones, for any model family."""

    process: Process

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return x0 (B C H W) for x (B C H W, in sigma space) at sigma (B)."""
        ...

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        """Return the skip tensors of the down path, each B C H W (paper 4.2)."""
        ...


class Switch(Protocol):
    """Turn the trained part of a model off; `Adapter` is one."""

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the frozen base."""
        ...
