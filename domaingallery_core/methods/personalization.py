"""Joint personalization (paper 4.5, Eq. 7): learn a domain and a subject in one LoRA."""

from __future__ import annotations

from torch import Tensor

from ..model.denoiser import Conditions, Denoiser, Switch
from ..plan import SUBJECT_TERMS, TrainingPlan
from .domaingallery import losses_beside
from .evaluation import Part, needed, reconstruct
from .noising import NoisedBatch


def losses(
    denoiser: Denoiser, adapter: Switch, noised: NoisedBatch, conditions: Conditions, plan: TrainingPlan
) -> dict[str, Tensor]:
    """Return the unweighted terms of DomainGallery, and "subject" and "subject_prior" (Eq. 1).

    The last two are the target term on images of the subject, "a [W] [N_subject]", and the prior term on
    images of its category, "a [N_subject]". They share the timestep and the evaluation of the others.
    """
    others: dict[str, Part] = {}
    if plan.uses("subject"):
        images = needed(noised.subject, "images of the subject")
        prompts = needed(conditions.subject, "the prompts of the subject")
        others["subject"] = needed(images.target, "images of the subject"), prompts.target
        if plan.uses("subject_prior"):
            others["subject_prior"] = (
                needed(images.source, "source images of the subject's category"),
                needed(prompts.source, "the source prompt of the subject"),
            )
    terms, beside = losses_beside(denoiser, adapter, noised, conditions, plan, others)
    return terms | {
        name: reconstruct(denoiser, others[name][0], beside[name]) for name in SUBJECT_TERMS if name in others
    }
