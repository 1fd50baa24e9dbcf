"""Prior attribute erasure, stage 1 (paper 4.1, Eq. 5a): make "a [V] [N]" mean what "a [N]" means."""

from __future__ import annotations

from . import objectives
from .evaluation import Ask, needed
from .method import Losses, Method, MethodSettings, Term
from .noising import NoisedStep
from .terms import DISENTANGLEMENT, PRIOR

ERASURE = Term(
    name="erasure",
    reads="source",
    weight=10.0,
    help="Weight of erasing what the identifier meant (Eq. 2); stage 1 only.",
)


class Erasure(Method):
    """Source images under both prompts; the erasure term alone needs no gradient of "a [N]"."""

    name = "erasure"
    title = "Prior attribute erasure"
    terms = (PRIOR, DISENTANGLEMENT, ERASURE)
    steps, learning_rate = 500, 1e-4

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        domain = noised["domain"]
        images = needed(domain.source, "source images")
        prompt = needed(domain.prompts.source, "the source prompt")
        source = ask(images, prompt, gradient=settings.uses("prior", "disentanglement"))
        terms: Losses = {}
        if settings.uses("prior"):
            terms["prior"] = source.reconstruction
        if settings.uses("disentanglement"):
            base = ask(images, prompt, trained=False)
            terms["disentanglement"] = lambda: objectives.disentanglement(source.value, base.value)
        if settings.uses("erasure"):
            moved = ask(images, domain.prompts.target)
            terms["erasure"] = lambda: objectives.erasure(moved.value, source.value)
        return terms
