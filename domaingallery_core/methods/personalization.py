"""Joint personalization (paper 4.5, Eq. 7): learn a domain and a subject in one LoRA."""

from __future__ import annotations

from .domaingallery import DomainGallery
from .evaluation import Ask, needed
from .method import Losses, MethodSettings, Term
from .noising import NoisedStep

SUBJECT = Term(
    name="subject",
    reads="target",
    role="subject",
    regresses=True,
    help="Weight of learning the subject (Eq. 7).",
)
SUBJECT_PRIOR = Term(
    name="subject_prior", reads="source", role="subject", times=("subject", "prior"), regresses=True
)


class Personalization(DomainGallery):
    """The terms of DomainGallery, and Eq. 1 on images of the subject, "a [W] [N_subject]", and on images of
    its category, "a [N_subject]". They share the timestep and the evaluation of the others.
    """

    name = "personalization"
    title = "Joint personalization"
    terms = (*DomainGallery.terms, SUBJECT, SUBJECT_PRIOR)

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        terms = super().losses(ask, noised, settings)
        if settings.uses("subject"):
            subject = noised["subject"]
            images = needed(subject.target, "images of the subject")
            terms["subject"] = ask(images, subject.prompts.target).reconstruction
            if settings.uses("subject_prior"):
                images = needed(subject.source, "source images of the subject's category")
                prompt = needed(subject.prompts.source, "the source prompt of the subject")
                terms["subject_prior"] = ask(images, prompt).reconstruction
        return terms
