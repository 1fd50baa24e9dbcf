"""Noise a batch: one timestep for all of it, independent noise for each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.parts import Batch, Role
from ..model.denoiser import Conditions
from ..model.process import Process


@dataclass(frozen=True, slots=True, eq=False)
class NoisedImages:
    """Hold noisy latents x (B C H W) at sigma (B) and what the family regresses on for them (B C H W).

    Attributes:
        mask: B 1 H W in 0..1, how much each place counts; None counts all alike.
    """

    x: Tensor
    sigma: Tensor
    wanted: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class NoisedBatch:
    """Hold the noisy images of a part in one step, all at one discrete timestep, and its prompts."""

    timestep: int
    prompts: Conditions
    target: NoisedImages | None = None
    source: NoisedImages | None = None


#: What a step reads; the timestep of all is the same.
NoisedStep = Mapping[Role, NoisedBatch]


def noised_images(process: Process, timestep: int, latents: Tensor, noise: Tensor) -> NoisedImages:
    """Noise latents (B C H W) to a discrete timestep."""
    sigma = process.sigma(timestep, latents)
    return NoisedImages(process.noised(latents, noise, sigma), sigma, process.target(latents, noise, sigma))


def noised_batch(
    process: Process,
    timestep: int,
    prompts: Conditions,
    *,
    target: tuple[Tensor, Tensor] | None = None,
    source: tuple[Tensor, Tensor] | None = None,
) -> NoisedBatch:
    """Noise pairs of (latents, noise) to one discrete timestep."""
    return NoisedBatch(
        timestep,
        prompts,
        target=None if target is None else noised_images(process, timestep, *target),
        source=None if source is None else noised_images(process, timestep, *source),
    )


def draw(
    step: Mapping[Role, Batch], process: Process, generator: torch.Generator, offset_noise: float = 0.0
) -> NoisedStep:
    """Draw one timestep and independent noise from a CPU generator, and noise what a step reads.

    Args:
        offset_noise: strength of noise that is constant over a channel; it is part of what is regressed on.
    """
    timestep = int(torch.randint(len(process), (), generator=generator))

    def pair(latents: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if latents is None:
            return None
        noise = torch.randn(latents.shape, generator=generator)
        if offset_noise:
            noise = noise + offset_noise * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        return latents, noise.to(latents)

    def noised(batch: Batch) -> NoisedBatch:
        prompts, pairs = batch.part.prompts, {"target": pair(batch.target), "source": pair(batch.source)}
        found = noised_batch(process, timestep, prompts, **pairs)
        if found.target is None or batch.mask is None:
            return found
        return replace(found, target=replace(found.target, mask=batch.mask))

    return {role: noised(batch) for role, batch in step.items()}
