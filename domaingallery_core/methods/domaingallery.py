"""DomainGallery finetuning, stage 2 (paper 4.2 and 4.3, Eq. 5b): learn the domain."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance import guide
from ..model.denoiser import Condition, Conditions, Denoiser, Switch
from ..plan import TrainingPlan
from . import objectives
from .evaluation import Part, denoise_parts, keeps_source, needed, predict, reconstruct
from .noising import NoisedBatch, NoisedImages
from .similarity import clean_features, recurrent_denoise, similarity_consistency


def losses(
    denoiser: Denoiser, adapter: Switch, noised: NoisedBatch, conditions: Conditions, plan: TrainingPlan
) -> dict[str, Tensor]:
    """Return the unweighted terms "target", "prior", "disentanglement" and "similarity" (Eq. 1, 1, 3, 4).

    Those without a weight are left out. One evaluation with gradient serves the target images, the source
    images and the first step of both recurrences; the similarity term alone needs no gradient of "a [N]".
    """
    terms, _ = losses_beside(denoiser, adapter, noised, conditions, plan, {})
    return terms


def losses_beside(
    denoiser: Denoiser,
    adapter: Switch,
    noised: NoisedBatch,
    conditions: Conditions,
    plan: TrainingPlan,
    others: dict[str, Part],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the terms of `losses`, and the x0 (B C H W) of other images from the same evaluation."""
    target = needed(noised.target, "target images")
    images = {"target": target}
    parts = [(target, conditions.target)]
    if plan.needs_source():
        source = needed(noised.source, "source images")
        source_part = (source, needed(conditions.source, "the source prompt"))
        if keeps_source(plan):
            images["source"] = source
            parts.append(source_part)
        if plan.uses("similarity"):
            images["source to target"] = source
            parts.append((source, conditions.target))
            if plan.needs_empty():
                images["empty"] = source
                parts.append((source, needed(conditions.empty, "the empty prompt")))
    found = denoise_parts(denoiser, [*parts, *others.values()])
    x0 = dict(zip([*images, *others], found, strict=True))
    beside = {name: x0[name] for name in others}
    if plan.needs_source() and "source" not in x0:
        with torch.no_grad():
            (x0["source"],) = denoise_parts(denoiser, [source_part])

    terms = {"target": reconstruct(denoiser, target, x0["target"])}
    if not plan.needs_source():
        return terms, beside
    source_prediction = predict(denoiser, source, x0["source"])
    if plan.uses("prior"):
        terms["prior"] = objectives.reconstruction(source_prediction, source.wanted)
    if plan.uses("disentanglement"):
        with torch.no_grad(), adapter.off():
            (base,) = denoise_parts(denoiser, [source_part])
        terms["disentanglement"] = objectives.disentanglement(
            source_prediction, predict(denoiser, source, base)
        )
    if plan.uses("similarity"):
        moving, fixed = denoised_pair(denoiser, source, noised.timestep, conditions, plan, x0)
        features = clean_features(denoiser, moving, conditions.target)
        with torch.no_grad():
            reference = clean_features(denoiser, fixed, source_part[1])
        terms["similarity"] = similarity_consistency(features, reference, scale=plan.similarity_scale)
    return terms, beside


def denoised_pair(
    denoiser: Denoiser,
    source: NoisedImages,
    timestep: int,
    conditions: Conditions,
    plan: TrainingPlan,
    first: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return recurrently denoised latents (B C H W): under "a [V] [N]", and without gradient under "a [N]".

    Args:
        first: the x0 at `timestep`, where known: "source to target", "source" and, with guidance, "empty".
    """

    def denoise(condition: Condition, known: Tensor | None, empty: Tensor | None) -> Tensor:
        if known is not None and plan.denoise_guidance != 1.0:
            known = guide(needed(empty, "the empty prompt"), known, guidance_scale=plan.denoise_guidance)
        return recurrent_denoise(
            denoiser,
            source.x,
            timestep,
            condition,
            steps=plan.denoise_steps,
            guidance=plan.denoise_guidance,
            empty=conditions.empty,
            first=known,
        )

    first = first or {}
    moving = denoise(conditions.target, first.get("source to target"), first.get("empty"))
    with torch.no_grad():
        fixed = denoise(
            needed(conditions.source, "the source prompt"), first.get("source"), first.get("empty")
        )
    return moving, fixed.detach()
