"""DreamBooth with a LoRA: the target and prior terms alone, under the same shared timestep."""

from __future__ import annotations

from torch import Tensor

from ..model.denoiser import Conditions, Denoiser, Switch
from ..plan import TrainingPlan
from .evaluation import denoise_parts, needed, reconstruct
from .noising import NoisedBatch


def losses(
    denoiser: Denoiser, adapter: Switch, noised: NoisedBatch, conditions: Conditions, plan: TrainingPlan
) -> dict[str, Tensor]:
    """Return the unweighted terms "target" and "prior" (Eq. 1) that have a weight."""
    target = needed(noised.target, "target images")
    images = {"target": target}
    parts = [(target, conditions.target)]
    if plan.uses("prior"):
        images["prior"] = needed(noised.source, "source images")
        parts.append((images["prior"], needed(conditions.source, "the source prompt")))
    found = zip(images.items(), denoise_parts(denoiser, parts), strict=True)
    return {name: reconstruct(denoiser, i, x0) for (name, i), x0 in found}
