"""How a MODEL draws, where nobody says otherwise."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...domaingallery_core.errors import InputError
from .families import Drawing
from .pixels.latents import has_frames

#: Stands for a choice that the model makes; among numbers 0 does.
AUTOMATIC = "automatic"
#: The smallest side of an image in latents.
SMALLEST = 2


def chosen(drawing: Drawing, *, steps: int, cfg: float, sampler_name: str, scheduler: str) -> dict[str, Any]:
    """Return how to sample, with what suits the model in the place of what is left to it."""
    return {
        "steps": steps or drawing.steps,
        "cfg": cfg or drawing.cfg,
        "sampler_name": drawing.sampler if sampler_name == AUTOMATIC else sampler_name,
        "scheduler": drawing.scheduler if scheduler == AUTOMATIC else scheduler,
    }


def empty_latents(model: ModelPatcher, count: int, width: int, height: int) -> Tensor:
    """Return zeros of the shape (N C H W) that a model draws images of this size from.

    Raises:
        InputError: the images would be smaller than a latent, or the model draws something else.
    """
    form, frames = model.get_model_object("latent_format"), has_frames(model)
    ratio = form.spacial_downscale_ratio
    if min(width, height) < SMALLEST * ratio:
        raise InputError(
            f"Expected images of at least {SMALLEST * ratio} pixels for this model, got {width} x {height}. "
            "Enter a larger size, or 0 for what suits the model."
        )
    latents = torch.zeros(count, form.latent_channels, height // ratio, width // ratio)
    return latents.unsqueeze(2) if frames else latents
