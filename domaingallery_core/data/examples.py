"""Latents of images of one kind, encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Hold the latents of images of one kind, encoded once.

    Attributes:
        latents: R C H W; the rows of an image, its crops and flips, follow each other.
        deviation: R C H W, of the VAE's posterior, of which `latents` is the mean; None reads the mean.
        masks: R 1 H W in 0..1, how much each place counts in the target term; None counts all alike.
        variants: rows of each image; which of them is read is drawn anew each time.
    """

    latents: Tensor
    deviation: Tensor | None = None
    masks: Tensor | None = None
    variants: int = 1

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.latents.shape[0] == 0:
            raise InputError(
                "Expected latents of at least one image (N C H W), "
                f"got the shape {tuple(self.latents.shape)!r}. Connect images."
            )
        if not bool(torch.isfinite(self.latents).all()):
            raise InputError("Expected finite latents, got NaN or infinity. Check the images and the VAE.")
        rows, _, height, width = self.latents.shape
        if self.variants < 1 or rows % self.variants:
            raise ValueError(f"Expected {self.variants} rows for each image, got {rows} rows.")
        if self.deviation is not None and self.deviation.shape != self.latents.shape:
            raise ValueError(f"Expected deviations like the latents, got {tuple(self.deviation.shape)!r}.")
        if self.masks is not None and self.masks.shape != (rows, 1, height, width):
            raise ValueError(f"Expected masks (R 1 H W) like the latents, got {tuple(self.masks.shape)!r}.")

    def __len__(self) -> int:
        return self.latents.shape[0] // self.variants

    def map(self, change: Callable[[Tensor], Tensor]) -> Examples:
        """Return the examples with each tensor changed."""
        tensors = (None if t is None else change(t) for t in (self.latents, self.deviation, self.masks))
        return Examples(*tensors, variants=self.variants)  # type: ignore[arg-type]

    def read(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return latents (B C H W) and masks (B 1 H W) of images at `index` modulo their number.

        The generator is drawn from only where there are variants or deviations.
        """
        rows = index % len(self)
        if self.variants > 1:
            rows = rows * self.variants + torch.randint(self.variants, rows.shape, generator=generator)
        rows = rows.to(self.latents.device)
        latents = self.latents[rows]
        if self.deviation is not None:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + self.deviation[rows] * noise
        return latents, None if self.masks is None else self.masks[rows]
