"""One file a system: a function from a noised batch to named losses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..model.denoiser import Conditions, Denoiser, Switch
from ..plan import TrainingPlan
from . import domaingallery, dreambooth, erasure, personalization
from .noising import NoisedBatch, NoisedImages, draw, noised_batch

Losses = Callable[[Denoiser, Switch, NoisedBatch, Conditions, TrainingPlan], dict[str, Tensor]]

METHODS: dict[str, Losses] = {
    "erasure": erasure.losses,
    "domaingallery": domaingallery.losses,
    "dreambooth": dreambooth.losses,
    "personalization": personalization.losses,
}

__all__ = ["METHODS", "Losses", "NoisedBatch", "NoisedImages", "draw", "noised_batch"]
