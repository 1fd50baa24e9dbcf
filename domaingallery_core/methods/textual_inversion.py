"""Textual Inversion (arXiv 2208.01618): the vectors of new tokens learn, in captions drawn from templates."""

from __future__ import annotations

from collections.abc import Sequence

from .evaluation import Ask, needed
from .method import Losses, Method, MethodSettings
from .noising import NoisedStep
from .terms import TARGET

#: Where the new tokens go in a template.
PLACE = "{}"
OBJECT = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a picture of a {}",
    "a clear photo of a {}",
    "a blurry photo of a {}",
    "a dark photo of a {}",
    "a bright photo of the {}",
    "a close-up of a {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a photo of a clean {}",
    "a cropped photo of the {}",
    "a rendering of a {}",
    "a depiction of the {}",
    "a snapshot of my {}",
)
STYLE = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a rendering in the style of {}",
    "a close-up in the style of {}",
    "a small painting in the style of {}",
    "a large painting in the style of {}",
    "a dark painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a detail of a painting in the style of {}",
    "a work of art in the style of {}",
)
TEMPLATES: dict[str, Sequence[str]] = {"object": OBJECT, "style": STYLE}


class TextualInversion(Method):
    """Eq. 1 on images, each under a caption and at a timestep of its own; nothing of the model learns."""

    name = "textual_inversion"
    title = "Textual Inversion"
    terms = (TARGET,)
    steps, learning_rate = 3000, 2e-3
    trains = "tokens"
    shares_timestep = False

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        domain = noised["domain"]
        return {"target": ask(needed(domain.target, "images"), domain.prompts.target).reconstruction}
