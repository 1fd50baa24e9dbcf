"""Latents of target and source images, and the order in which a training reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Hold the latents of images of one kind, N C H W, encoded once."""

    latents: Tensor

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.latents.shape[0] == 0:
            raise InputError(
                "Expected latents of at least one image (N C H W), "
                f"got the shape {tuple(self.latents.shape)!r}. Connect images."
            )
        if not bool(torch.isfinite(self.latents).all()):
            raise InputError("Expected finite latents, got NaN or infinity. Check the images and the VAE.")

    def __len__(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Hold the target and source images of one domain; either may be absent."""

    target: Examples | None = None
    source: Examples | None = None

    def __post_init__(self) -> None:
        if self.target is None and self.source is None:
            raise InputError("Expected target or source images, got neither. Connect images.")
        if self.target is not None and self.source is not None:
            shapes = tuple(self.target.latents.shape[1:]), tuple(self.source.latents.shape[1:])
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"Expected target and source latents of one size, got {shapes[0]!r} and {shapes[1]!r}. "
                    "Encode both at the same image size with the same VAE."
                )

    def __len__(self) -> int:
        return max(len(examples) for examples in (self.target, self.source) if examples is not None)

    def restricted(self, *, target: bool, source: bool) -> Dataset:
        """Return the parts that a run reads.

        Raises:
            InputError: a part is needed and absent.
        """
        for name, needed, part in (("target", target, self.target), ("source", source, self.source)):
            if needed and part is None:
                raise InputError(
                    f"Expected {name} images for this training, got none. Connect {name} images."
                )
        return Dataset(target=self.target if target else None, source=self.source if source else None)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Hold the latents of one step, each B C H W or None."""

    target: Tensor | None
    source: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(*(None if part is None else part.to(device) for part in (self.target, self.source)))


def batches(dataset: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches for ever in the order of the released code.

    Indices up to the length of the longer part are shuffled without replacement; each part is read at the
    index modulo its length. A batch that an epoch cannot fill goes on in the next; none is smaller.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(dataset), generator=generator)])
        index, waiting = waiting[:batch_size], waiting[batch_size:]
        yield Batch(target=_rows(dataset.target, index), source=_rows(dataset.source, index))


def _rows(examples: Examples | None, index: Tensor) -> Tensor | None:
    return None if examples is None else examples.latents[(index % len(examples)).to(examples.latents.device)]
