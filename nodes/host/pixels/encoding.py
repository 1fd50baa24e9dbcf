"""Pixels and latents, a few images at a time: float pixels of many images never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....domaingallery_core.data.examples import Examples
from ....domaingallery_core.errors import InputError, shown
from ...sockets import SourceLatents
from ..progress import check_interrupt
from .latents import without_frames

#: At most so many images, and about so many pixels, go through a VAE at once.
IMAGES_AT_ONCE, PIXELS_AT_ONCE = 8, 2**20


def at_once(height: int, width: int) -> int:
    """Return how many images of a size go through a VAE at once."""
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // max(height * width, 1)))


def chunks(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield images (1 H W C each, all of one size) in batches for a VAE."""
    images = iter(images)
    for first in images:
        more = islice(images, at_once(first.shape[1], first.shape[2]) - 1)
        yield torch.cat([first, *more])


def decoded(vae: Any, latents: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the images (1 H W C each) of latents (N C ...), `size` of them decoded at once."""
    for chunk in latents.split(size):
        check_interrupt()
        yield from pixels(vae, chunk).split(1)


def pixels(vae: Any, latents: Tensor) -> Tensor:
    """Return what a VAE decodes latents (N C ...) to, as images (B H W C).

    Raises:
        InputError: they are no images, or not finite.
    """
    found = vae.decode(latents)
    if found.ndim < 4 or found.numel() == 0:
        raise InputError(
            f"Expected images from the VAE, got {shown(found)}. Connect the VAE that belongs to the model."
        )
    if not bool(torch.isfinite(found).all()):
        raise InputError(
            "Expected images from the VAE, got pixels that are not finite. Use the VAE in float32: start the "
            "host with --fp32-vae."
        )
    return found.flatten(0, -4)  # video VAEs add a dimension for frames


def images_of(
    given: Sequence[Tensor | SourceLatents], wanted: Callable[[int], bool] | None = None
) -> Iterator[Tensor]:
    """Yield images one by one (1 H W C), those of batches (B H W C) and those that latents stand for.

    Args:
        wanted: tells by the number of an image whether it is; without it all are.
    """
    number = 0
    for batch in given:
        rows = batch.latents if isinstance(batch, SourceLatents) else batch
        chosen = [i for i in range(len(rows)) if wanted is None or wanted(number + i)]
        number += len(rows)
        picked = rows if len(chosen) == len(rows) else rows[chosen]
        if isinstance(batch, SourceLatents):
            yield from decoded(batch.vae, picked, at_once(*batch.size))
        else:
            yield from picked.split(1)


def encode(vae: Any, images: Iterable[Tensor]) -> Examples:
    """Return the latents of images (1 H W C each), with the deviations of the posterior if there is one."""
    latents, deviations = [], []
    for chunk in chunks(images):
        check_interrupt()
        mean, deviation = encode_chunk(vae, chunk)
        if mean.ndim < 4 or len(mean) != len(chunk) or not bool(torch.isfinite(mean).all()):
            raise InputError(
                f"Expected finite latents from the VAE, one of each of {len(chunk)} images, got "
                f"{shown(mean)}. Use the VAE of the model, in float32 if there is NaN in it."
            )
        latents.append(without_frames(mean))
        deviations.append(deviation)
    known = [deviation for deviation in deviations if deviation is not None]
    return Examples(torch.cat(latents), torch.cat(known) if len(known) == len(latents) else None)


def encode_chunk(vae: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a VAE encodes images to, a mean, and the deviation of its normal posterior if it has one.

    A VAE of films takes a batch for the frames of one, so it gets images one by one. The moments of others
    pass through their regularization, where a hook reads them. When the host encodes tiles for want of memory
    there is no deviation.
    """
    if getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False):
        return torch.cat([vae.encode(image) for image in images.split(1)]), None
    network = getattr(vae, "first_stage_model", None)
    regularization = getattr(network, "regularization", None)
    normal = isinstance(regularization, DiagonalGaussianRegularizer)
    if not normal or getattr(network, "bn", None) is not None:  # moved and scaled after it
        return vae.encode(images), None
    moments: list[Tensor] = []
    hook = regularization.register_forward_pre_hook(lambda _, given: moments.append(given[0]))
    try:
        mean = vae.encode(images)
    finally:
        hook.remove()
    parts = [given.chunk(2, dim=1)[1].to(mean) for given in moments]
    if sum(map(len, parts)) != len(mean) or any(part.shape[1:] != mean.shape[1:] for part in parts):
        return mean, None
    log_variance = torch.cat(parts)
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp()


def check_vae(model: ModelPatcher, vae) -> None:
    """Raise InputError unless a VAE decodes what a MODEL draws, as far as can be told."""
    expected, channels = model.model.latent_format.latent_channels, getattr(vae, "latent_channels", None)
    if channels is not None and channels != expected:
        raise InputError(
            f"Expected the VAE of this model ({expected} channels), got one of {channels} channels. "
            "Connect the VAE that belongs to the model."
        )
