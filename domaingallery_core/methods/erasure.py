"""Prior attribute erasure, stage 1 (paper 4.1, Eq. 5a): make "a [V] [N]" mean what "a [N]" means."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import objectives
from ..config import TrainingPlan
from ..denoiser import Conditions, Denoiser, Switch
from .evaluation import denoise_parts, needed, predict
from .noising import NoisedBatch


def losses(
    denoiser: Denoiser, adapter: Switch, noised: NoisedBatch, conditions: Conditions, plan: TrainingPlan
) -> dict[str, Tensor]:
    """Return the unweighted terms "prior", "disentanglement", "erasure" (Eq. 1, 3, 2) that have a weight."""
    images = needed(noised.source, "source images")
    source_prompt = needed(conditions.source, "the source prompt")
    parts = [(images, source_prompt)]
    if plan.uses("erasure"):
        parts.append((images, conditions.target))
    predictions = [predict(denoiser, images, x0) for x0 in denoise_parts(denoiser, parts)]
    source = predictions[0]

    terms: dict[str, Tensor] = {}
    if plan.uses("prior"):
        terms["prior"] = objectives.reconstruction(source, images.wanted)
    if plan.uses("disentanglement"):
        with torch.no_grad(), adapter.off():
            (base,) = denoise_parts(denoiser, [(images, source_prompt)])
        terms["disentanglement"] = objectives.disentanglement(source, predict(denoiser, images, base))
    if plan.uses("erasure"):
        terms["erasure"] = objectives.erasure(predictions[1], source)
    return terms
