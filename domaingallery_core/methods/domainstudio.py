"""DomainStudio (arXiv 2306.14153): DreamBooth, and three terms on decoded one-step predictions.

`published` is what its formulas intend, `released` what its code computes. They differ in

- latents: scaled back before they are decoded; or read by the VAE as the model sees them;
- the source half: of the frozen model, without gradient; or of the model that learns, with gradient;
- the divergence: KL(target || source), a mean over images; or KL(source || target), divided by B - 1 as well;
- the high frequencies: regressed on those of the same image; or of other images of the domain.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..data.parts import Decoder
from ..model.denoiser import Prompt
from . import objectives
from .dreambooth import DreamBooth
from .evaluation import Ask, Prediction, needed
from .method import Losses, MethodSettings, Term
from .noising import NoisedImages, NoisedStep, noised_images
from .similarity import divergence
from .terms import PRIOR, TARGET

IMAGE_SIMILARITY = Term(
    name="image_similarity",
    reads="source",
    weight=100.0,
    least_batch=3,
    help="Weight of keeping pictures as different from each other as those of the category (L_img).",
)
FREQUENCY_SIMILARITY = Term(
    name="frequency_similarity",
    reads="source",
    weight=100.0,
    least_batch=3,
    help="Weight of the same for their high frequencies (L_hf).",
)
FREQUENCY = Term(
    name="frequency",
    reads="target",
    weight=0.1,
    help="Weight of having the high frequencies of the images of the domain (L_hfmse).",
)
STYLE = Term(
    name="style",
    reads="target",
    role="subject",
    regresses=True,
    help="Weight of learning the images of the style, where there are any.",
)
LOOKING = (IMAGE_SIMILARITY, FREQUENCY_SIMILARITY, FREQUENCY)


class DomainStudio(DreamBooth):
    """L = L_target + L_prior + 100 L_img + 100 L_hf + 0.1 L_hfmse, as the formulas intend.

    What is decoded is predicted at one timestep for all images; the first two terms have the same latents and
    noise at timesteps of their own.
    """

    name = "domainstudio"
    title = "DomainStudio"
    terms = (TARGET, PRIOR, *LOOKING)
    reads_others, decodes = True, True
    released: ClassVar[bool] = False

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        terms = super().losses(ask, noised, settings)
        if not settings.uses(*(term.name for term in LOOKING)):
            return terms
        domain = noised["domain"]
        decoder = needed(domain.decoder, "a VAE that decodes with a gradient")

        def pictures(images: NoisedImages, prompt: Prompt, *, trained: bool = True) -> Pictures:
            at_one = noised_images(ask.denoiser.process, domain.timestep, images.latents, images.noise)
            return Pictures(ask(at_one, prompt, trained=trained), decoder, rescaled=not self.released)

        images = needed(domain.target, "images")
        target = pictures(images, domain.prompts.target)
        if settings.uses(IMAGE_SIMILARITY.name, FREQUENCY_SIMILARITY.name):
            prompt = needed(domain.prompts.source, "the source prompt")
            source = pictures(needed(domain.source, "source images"), prompt, trained=self.released)
            scale = "released" if self.released else "paper"
            if settings.uses(IMAGE_SIMILARITY.name):
                terms[IMAGE_SIMILARITY.name] = lambda: divergence(target.pixels, source.pixels, scale=scale)
            if settings.uses(FREQUENCY_SIMILARITY.name):
                terms[FREQUENCY_SIMILARITY.name] = lambda: divergence(target.high, source.high, scale=scale)
        if settings.uses(FREQUENCY.name):
            latents = needed(domain.others, "further images") if self.released else images.latents

            def frequency() -> Tensor:
                with torch.no_grad():
                    wanted = high_frequencies(decoded(decoder, latents))
                return objectives.mean_squared_error(target.high, wanted)

            terms[FREQUENCY.name] = frequency
        return terms


class DomainStudioReleased(DomainStudio):
    """The same as the released code computes it."""

    name = "domainstudio_released"
    title = "DomainStudio, released"
    released = True


class DomainStudioStyle(DomainStudio):
    """The personalised variant: Eq. 1 on images of a style as well, "a [V] [N] in the [S] style"."""

    name = "domainstudio_style"
    title = "DomainStudio with a style"
    terms = (*DomainStudio.terms, STYLE)

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        terms = super().losses(ask, noised, settings)
        if settings.uses(STYLE.name):
            style = noised["subject"]
            images = needed(style.target, "images of the style")
            terms[STYLE.name] = ask(images, style.prompts.target).reconstruction
        return terms


class DomainStudioStyleReleased(DomainStudioStyle):
    """The same as the released code computes its terms."""

    name = "domainstudio_style_released"
    title = "DomainStudio with a style, released"
    released = True


class Pictures:
    """Hold pictures of what a model predicts in one step, decoded when they are first looked at."""

    def __init__(self, prediction: Prediction, decoder: Decoder, *, rescaled: bool) -> None:
        self._prediction, self._decoder, self._rescaled = prediction, decoder, rescaled

    @cached_property
    def pixels(self) -> Tensor:
        """Return the pictures (B 3 H W)."""
        return decoded(self._decoder, self._prediction.x0, rescaled=self._rescaled)

    @cached_property
    def high(self) -> Tensor:
        """Return their high frequencies (B 3 H/2 W/2)."""
        return high_frequencies(self.pixels)


def decoded(decoder: Decoder, latents: Tensor, *, rescaled: bool = True) -> Tensor:
    """Return the pictures (B 3 H W) of latents (B C H W), one at a time and again in the backward pass."""

    def decode(row: Tensor) -> Tensor:
        return decoder(row, rescaled=rescaled)

    def again(row: Tensor) -> Tensor:
        return checkpoint(decode, row, use_reentrant=False)  # type: ignore[return-value]

    moving = latents.requires_grad and torch.is_grad_enabled()
    return torch.cat([(again if moving else decode)(row) for row in latents.split(1)])


def haar_details(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return LH, HL and HH of one level of the Haar transform of pictures (B C H W), each B C H/2 W/2.

    An odd last row or column is left out.
    """
    height, width = (side // 2 * 2 for side in pictures.shape[-2:])
    even = pictures[..., :height, :width]
    a, b = even[..., 0::2, 0::2], even[..., 0::2, 1::2]
    c, d = even[..., 1::2, 0::2], even[..., 1::2, 1::2]
    return (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def high_frequencies(pictures: Tensor) -> Tensor:
    """Return hf(x) = LH(x) + HL(x) + HH(x) of pictures (B C H W), B C H/2 W/2."""
    lh, hl, hh = haar_details(pictures)
    return lh + hl + hh
