"""DomainGallery finetuning, stage 2 (paper 4.2 and 4.3, Eq. 5b): learn the domain."""

from __future__ import annotations

import torch
from torch import Tensor

from ..guidance import guide
from ..model.denoiser import Conditions, Denoiser, Prompt, resolved
from . import objectives
from .evaluation import Ask, needed
from .method import Losses, Method, MethodSettings
from .noising import NoisedImages, NoisedStep
from .similarity import clean_features, recurrent_denoise, similarity_consistency
from .terms import DISENTANGLEMENT, PRIOR, SIMILARITY, TARGET


class DomainGallery(Method):
    """One evaluation with gradient serves the target images, the source images and the first step of both
    recurrences; the similarity term alone needs no gradient of "a [N]".
    """

    name = "domaingallery"
    title = "DomainGallery"
    terms = (TARGET, PRIOR, DISENTANGLEMENT, SIMILARITY)
    steps, learning_rate = 1000, 5e-5

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        domain = noised["domain"]
        prompts = domain.prompts
        target = ask(needed(domain.target, "target images"), prompts.target)
        terms: Losses = {"target": target.reconstruction}
        if not settings.reads("source"):
            return terms
        images = needed(domain.source, "source images")
        prompt = needed(prompts.source, "the source prompt")
        source = ask(images, prompt, gradient=settings.uses("prior", "disentanglement"))
        if settings.uses("prior"):
            terms["prior"] = source.reconstruction
        if settings.uses("disentanglement"):
            base = ask(images, prompt, trained=False)
            terms["disentanglement"] = lambda: objectives.disentanglement(source.value, base.value)
        if settings.uses("similarity"):
            first = {"source to target": ask(images, prompts.target), "source": source}
            if settings.needs_empty():
                first["empty"] = ask(images, needed(prompts.empty, "the empty prompt"))

            def similarity() -> Tensor:
                known = {name: asked.x0 for name, asked in first.items()}
                moving, fixed = denoised_pair(ask.denoiser, images, domain.timestep, prompts, settings, known)
                features = clean_features(ask.denoiser, moving, resolved(prompts.target))
                with torch.no_grad():
                    reference = clean_features(ask.denoiser, fixed, resolved(prompt))
                return similarity_consistency(features, reference, scale=settings.similarity_scale)

            terms["similarity"] = similarity
        return terms


def denoised_pair(
    denoiser: Denoiser,
    source: NoisedImages,
    timestep: int,
    prompts: Conditions,
    settings: MethodSettings,
    first: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return recurrently denoised latents (B C H W): under "a [V] [N]", and without gradient under "a [N]".

    Args:
        first: the x0 at `timestep`, where known: "source to target", "source" and, with guidance, "empty".
    """

    def denoise(prompt: Prompt, known: Tensor | None, empty: Tensor | None) -> Tensor:
        if known is not None and settings.denoise_guidance != 1.0:
            known = guide(needed(empty, "the empty prompt"), known, guidance_scale=settings.denoise_guidance)
        return recurrent_denoise(
            denoiser,
            source.x,
            timestep,
            resolved(prompt),
            steps=settings.denoise_steps,
            guidance=settings.denoise_guidance,
            empty=None if prompts.empty is None else resolved(prompts.empty),
            first=known,
        )

    first = first or {}
    moving = denoise(prompts.target, first.get("source to target"), first.get("empty"))
    with torch.no_grad():
        fixed = denoise(needed(prompts.source, "the source prompt"), first.get("source"), first.get("empty"))
    return moving, fixed.detach()
