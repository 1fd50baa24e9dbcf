"""Noise a batch: one timestep for all of it or one for each image, and independent noise for each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.parts import Batch, Decoder, Role
from ..model.denoiser import Condition, Conditions, resolved
from ..model.process import Process
from .objectives import min_snr_weight


@dataclass(frozen=True, slots=True, eq=False)
class NoisedImages:
    """Hold noisy latents x (B C H W) at sigma (B) and what the family regresses on for them (B C H W).

    Attributes:
        latents, noise: what x was made of (B C H W).
        mask: B 1 H W in 0..1, how much each place counts; None counts all alike.
        weight: B, how much each image counts in Eq. 1; None counts all alike.
    """

    x: Tensor
    sigma: Tensor
    wanted: Tensor
    latents: Tensor
    noise: Tensor
    mask: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class NoisedBatch:
    """Hold the noisy images of a part in one step, and its prompts.

    Attributes:
        timestep: a discrete one; that of all images, unless the method draws one for each.
        others: latents of further target images (B C H W), for a method that reads some.
        decoder: turns latents into pictures, where the part has one.
    """

    timestep: int
    prompts: Conditions
    target: NoisedImages | None = None
    source: NoisedImages | None = None
    others: Tensor | None = None
    decoder: Decoder | None = None


#: What a step reads; the timestep of all is the same.
NoisedStep = Mapping[Role, NoisedBatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Say how a step is drawn.

    Attributes:
        offset_noise: strength of noise that is constant over a channel; it is part of what is regressed on.
        shared: whether all images have one timestep; otherwise each has its own.
        others: whether further target images are drawn.
        min_snr: gamma of the weights of images that have a timestep of their own; 0 for none.
    """

    offset_noise: float = 0.0
    shared: bool = True
    others: bool = False
    min_snr: float = 0.0


def noised_images(process: Process, timestep: int | Tensor, latents: Tensor, noise: Tensor) -> NoisedImages:
    """Noise latents (B C H W) to a discrete timestep, or each to one of several (B)."""
    sigma = process.sigma(timestep, latents)
    wanted = process.target(latents, noise, sigma)
    return NoisedImages(process.noised(latents, noise, sigma), sigma, wanted, latents, noise)


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
    step: Mapping[Role, Batch], process: Process, generator: torch.Generator, how: Drawing | None = None
) -> NoisedStep:
    """Draw all that is random in a step from a CPU generator, and noise what the step reads."""
    how = how or Drawing()
    timestep = int(torch.randint(len(process), (), generator=generator))

    def pair(latents: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if latents is None:
            return None
        noise = torch.randn(latents.shape, generator=generator)
        if how.offset_noise:
            noise = noise + how.offset_noise * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
        return latents, noise.to(latents)

    def noised(batch: Batch) -> NoisedBatch:
        part, pairs = batch.part, {"target": pair(batch.target), "source": pair(batch.source)}
        found = noised_batch(process, timestep, part.prompts, **pairs)
        if not how.shared:
            found = apart(found, process, generator, how.min_snr)
        if found.target is not None:
            target = found.target if batch.mask is None else replace(found.target, mask=batch.mask)
            prompts, others = captioned(part.prompts, len(target), generator), None
            if how.others and part.target is not None:
                index = torch.randint(len(part.target), (len(target),), generator=generator)
                others = part.target.read(index, generator)[0].to(target.x)
            found = replace(found, target=target, prompts=prompts, others=others)
        return replace(found, decoder=part.decoder)

    return {role: noised(batch) for role, batch in step.items()}


def apart(
    batch: NoisedBatch, process: Process, generator: torch.Generator, min_snr: float = 0.0
) -> NoisedBatch:
    """Return a batch whose images, made of the same latents and noise, have a timestep of their own each."""

    def own(images: NoisedImages | None) -> NoisedImages | None:
        if images is None:
            return None
        timesteps = torch.randint(len(process), (len(images),), generator=generator)
        found = noised_images(process, timesteps, images.latents, images.noise)
        if not min_snr:
            return found
        weights = [min_snr_weight(process, timestep, min_snr) for timestep in timesteps.tolist()]
        return replace(found, weight=torch.tensor(weights).to(found.x))

    return replace(batch, target=own(batch.target), source=own(batch.source))


def captioned(prompts: Conditions, count: int, generator: torch.Generator) -> Conditions:
    """Return prompts of which `target` has a row for each image, one of the captions if there are any."""
    captions = prompts.captions
    if not captions:
        return prompts
    chosen = torch.randint(len(captions), (count,), generator=generator).tolist()

    def target() -> Condition:
        found = {number: resolved(captions[number]) for number in dict.fromkeys(chosen)}
        return Condition.cat([found[number] for number in chosen])

    return replace(prompts, target=target)
