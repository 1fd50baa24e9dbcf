"""Joint personalization (paper 4.5, Eq. 7): learn a domain and a subject in one LoRA."""

from __future__ import annotations

from ..model.denoiser import Conditions
from .domaingallery import DomainGallery
from .evaluation import Ask, needed
from .method import Losses, MethodSettings, Term
from .noising import NoisedBatch

SUBJECT = Term(
    name="subject", reads="subject", regresses=True, help="Weight of learning the subject (Eq. 7)."
)
SUBJECT_PRIOR = Term(name="subject_prior", reads="subject_source", times=("subject", "prior"), regresses=True)


class Personalization(DomainGallery):
    """The terms of DomainGallery, and Eq. 1 on images of the subject, "a [W] [N_subject]", and on images of
    its category, "a [N_subject]". They share the timestep and the evaluation of the others.
    """

    name = "personalization"
    terms = (*DomainGallery.terms, SUBJECT, SUBJECT_PRIOR)

    def losses(
        self, ask: Ask, noised: NoisedBatch, conditions: Conditions, settings: MethodSettings
    ) -> Losses:
        terms = super().losses(ask, noised, conditions, settings)
        if settings.uses("subject"):
            images = needed(noised.subject, "images of the subject")
            prompts = needed(conditions.subject, "the prompts of the subject")
            subject = ask(needed(images.target, "images of the subject"), prompts.target)
            terms["subject"] = subject.reconstruction
            if settings.uses("subject_prior"):
                prior = ask(
                    needed(images.source, "source images of the subject's category"),
                    needed(prompts.source, "the source prompt of the subject"),
                )
                terms["subject_prior"] = prior.reconstruction
        return terms
