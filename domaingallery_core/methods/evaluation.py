"""Evaluate rows that need the same weights and the same gradient mode in one batch."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from ..errors import InputError
from ..model.denoiser import Condition, Denoiser, denoise_together
from ..plan import TrainingPlan
from . import objectives
from .noising import NoisedImages

T = TypeVar("T")
Part = tuple[NoisedImages, Condition]


def denoise_parts(denoiser: Denoiser, parts: list[Part]) -> list[Tensor]:
    """Return x0 (B C H W) for each part, from one evaluation where their prompts fit."""
    return denoise_together(denoiser, [(images.x, images.sigma, condition) for images, condition in parts])


def keeps_source(plan: TrainingPlan) -> bool:
    """Tell whether the prediction of "a [N]" is trained itself, and not only compared with."""
    return plan.uses("prior") or plan.uses("disentanglement")


def predict(denoiser: Denoiser, images: NoisedImages, x0: Tensor) -> Tensor:
    """Return the family's prediction (B C H W) for images from their x0."""
    return denoiser.process.prediction(images.x, x0, images.sigma)


def reconstruct(denoiser: Denoiser, images: NoisedImages, x0: Tensor) -> Tensor:
    """Return Eq. 1 for images from their x0 (B C H W)."""
    return objectives.reconstruction(predict(denoiser, images, x0), images.wanted, images.mask)


def needed(value: T | None, name: str) -> T:
    """Return value, or raise InputError that names what the training lacks."""
    if value is None:
        raise InputError(f"Expected {name} for this training, got none. Connect it.")
    return value
