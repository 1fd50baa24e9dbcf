"""Prior attribute erasure, stage 1 (paper 4.1, Eq. 5a): make "a [V] [N]" mean what "a [N]" means."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.denoiser import Conditions, Denoiser, Switch
from ..plan import TrainingPlan
from . import objectives
from .evaluation import denoise_parts, keeps_source, needed, predict
from .noising import NoisedBatch


def losses(
    denoiser: Denoiser, adapter: Switch, noised: NoisedBatch, conditions: Conditions, plan: TrainingPlan
) -> dict[str, Tensor]:
    """Return the unweighted terms "prior", "disentanglement", "erasure" (Eq. 1, 3, 2) that have a weight.

    One evaluation with gradient serves both prompts; the erasure term alone needs no gradient of "a [N]".
    """
    images = needed(noised.source, "source images")
    source_part = (images, needed(conditions.source, "the source prompt"))
    parts = {"source": source_part} if keeps_source(plan) else {}
    if plan.uses("erasure"):
        parts["target"] = (images, conditions.target)
    x0 = dict(zip(parts, denoise_parts(denoiser, list(parts.values())), strict=True))
    if "source" not in x0:
        with torch.no_grad():
            (x0["source"],) = denoise_parts(denoiser, [source_part])
    source = predict(denoiser, images, x0["source"])

    terms: dict[str, Tensor] = {}
    if plan.uses("prior"):
        terms["prior"] = objectives.reconstruction(source, images.wanted)
    if plan.uses("disentanglement"):
        with torch.no_grad(), adapter.off():
            (base,) = denoise_parts(denoiser, [source_part])
        terms["disentanglement"] = objectives.disentanglement(source, predict(denoiser, images, base))
    if plan.uses("erasure"):
        terms["erasure"] = objectives.erasure(predict(denoiser, images, x0["target"]), source)
    return terms
