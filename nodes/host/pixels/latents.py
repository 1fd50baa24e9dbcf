"""Latents as a VAE, a MODEL and the core have them: some have an axis for frames, the core has none."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....domaingallery_core.errors import InputError, shown


def has_frames(model: ModelPatcher) -> bool:
    """Tell whether the latents of a MODEL have an axis for frames.

    Raises:
        InputError: they are not those of images or films.
    """
    dimensions = model.get_model_object("latent_format").latent_dimensions
    if dimensions not in (2, 3):
        raise InputError(
            f"Expected a model that draws images, got a {type(model.model).__name__}, whose latents have "
            f"{dimensions} dimension(s). Connect another model."
        )
    return dimensions == 3


def with_frames(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents (B C H W) as a MODEL's network takes them: B C 1 H W where it has an axis for frames."""
    return latents.unsqueeze(2) if has_frames(model) and latents.ndim == 4 else latents


def without_frames(latents: Tensor) -> Tensor:
    """Return latents (B C H W) of images, from those that may have an axis for frames (B C 1 H W).

    Raises:
        InputError: they are those of films, or of something else than images.
    """
    if latents.ndim == 5 and latents.shape[2] == 1:
        latents = latents.squeeze(2)
    if latents.ndim != 4:
        raise InputError(
            f"Expected latents of images, got {shown(latents)}. Use a model and a VAE that draw images."
        )
    return latents


def training_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents from a VAE (N C H W) as the model sees them, as ordinary tensors on the CPU.

    Raises:
        InputError: they come from the VAE of another family.
    """
    expected = model.get_model_object("latent_format").latent_channels
    if latents.shape[1] != expected:
        raise InputError(
            f"Expected images encoded with the VAE of this model ({expected} channels), "
            f"got {latents.shape[1]} channels. Connect the VAE that belongs to the model to Domain Dataset."
        )
    plain = latents.clone().to("cpu", torch.float32)
    return without_frames(model.model.process_latent_in(with_frames(model, plain)))


def vae_latents(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents as the model sees them (B C H W) as its VAE decodes them."""
    return model.model.process_latent_out(with_frames(model, latents))


def deviation_scale(model: ModelPatcher, channels: int) -> Tensor:
    """Return what a deviation of a latent is multiplied by in the model's eyes (1 C 1 1).

    What the model sees is linear in each latent, with an offset in some families.
    """
    ends = [torch.full((1, channels, 1, 1), end, dtype=torch.float64) for end in (0.0, 1.0)]
    zero, one = (model.model.process_latent_in(with_frames(model, end)) for end in ends)
    return without_frames(one - zero).float()
