"""What is looked at during a run and changes nothing of it: a loss on fixed noise, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.examples import Examples
from ..data.parts import Part
from ..generators import generator
from ..methods import objectives
from ..methods.noising import noised_images
from ..methods.similarity import recurrent_denoise
from ..model.denoiser import Condition, Conditions, Denoiser, denoise_together, resolved
from ..settings import check_number

#: Noise levels of the validation loss, at even distances.
LEVELS = 8
#: How many images of each category the validation loss reads at most, so that it stays cheap.
IMAGES = 16

Watched = tuple[Examples, Conditions]


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """Say what to look at; 0 steps between looks is never.

    Attributes:
        previews: how many pictures, drawn from fixed noise under the target prompt.
        preview_steps, preview_cfg: steps of DDIM and guidance scale for them.
    """

    validate_every: int = 0
    preview_every: int = 0
    previews: int = 1
    preview_steps: int = 20
    preview_cfg: float = 7.5

    def __post_init__(self) -> None:
        check_number("validate_every", self.validate_every, least=0, whole=True)
        check_number("preview_every", self.preview_every, least=0, whole=True)
        check_number("previews", self.previews, least=1, whole=True)
        check_number("preview_steps", self.preview_steps, least=1, whole=True)
        check_number("preview_cfg", self.preview_cfg, least=0)

    def validates(self, step: int, total: int) -> bool:
        """Tell whether the loss is read after a step: every so many, at the beginning and at the end."""
        return _due(step, total, self.validate_every)

    def draws(self, step: int, total: int) -> bool:
        """Tell whether pictures are drawn after a step: every so many, at the beginning and at the end."""
        return _due(step, total, self.preview_every)

    def rows(self, done: int, total: int, images: int) -> int:
        """Return how many rows are evaluated to look at a run from a step on, with so many images to read."""
        steps = range(done, total + 1)
        drawn = sum(self.draws(step, total) for step in steps) * self.previews * self.preview_steps
        read = sum(self.validates(step, total) for step in steps) * LEVELS * images
        return drawn * (1 if self.preview_cfg == 1.0 else 2) + read


def _due(step: int, total: int, every: int) -> bool:
    return every > 0 and (step % every == 0 or step == total)


def watched(parts: Sequence[Part]) -> list[Watched]:
    """Return the images that are looked at, those held out if any are, of each category with its prompts."""
    domain = [part for part in parts if part.role == "domain"]
    held_out = any(part.validation is not None for part in domain)
    found = [(part.validation if held_out else part.target or part.source, part.prompts) for part in domain]
    return [(examples, prompts) for examples, prompts in found if examples is not None]


def validation_loss(denoiser: Denoiser, parts: Sequence[Watched], batch_size: int) -> float:
    """Return the mean of Eq. 1 over the images of all categories, at LEVELS fixed noise levels.

    Images and noise are the same at every step and in every run, so that curves compare.
    """
    total = sum(len(examples) for examples, _ in parts)
    return sum(
        # One crop of each image, so that many images are read and not many crops of few.
        _loss(denoiser, examples.latents[:: examples.variants][:IMAGES], resolved(prompts.target), batch_size)
        * (len(examples) / total)
        for examples, prompts in parts
    )


@torch.no_grad()
def _loss(denoiser: Denoiser, latents: Tensor, condition: Condition, batch_size: int) -> float:
    """Return the mean of Eq. 1 over latents (N C H W) at the fixed noise levels."""
    stream = generator(0, "validation")
    latents = latents.to(_device(condition))
    found = []
    for level in range(LEVELS):
        timestep = int((level + 0.5) * len(denoiser.process) / LEVELS)
        noise = torch.randn(latents.shape, generator=stream).to(latents)
        for rows, ours in zip(latents.split(batch_size), noise.split(batch_size), strict=True):
            images = noised_images(denoiser.process, timestep, rows, ours)
            (x0,) = denoise_together(denoiser, [(images.x, images.sigma, condition)])
            prediction = denoiser.process.prediction(images.x, x0, images.sigma)
            loss = objectives.reconstruction(prediction, images.wanted)
            found.append(loss * len(rows) / (LEVELS * len(latents)))
    return float(torch.stack(found).sum())


@torch.no_grad()
def draw_previews(
    denoiser: Denoiser,
    like: Tensor,
    prompts: Conditions,
    monitor: Monitor,
    batch_size: int,
) -> Tensor:
    """Return latents (B C H W), of the size of `like` (N C H W), drawn by DDIM from fixed noise."""
    condition = resolved(prompts.target)
    first = len(denoiser.process) - 1
    noise = torch.randn((monitor.previews, *like.shape[1:]), generator=generator(0, "preview")).to(like)
    noise = noise.to(_device(condition))
    x = denoiser.process.noised(torch.zeros_like(noise), noise, denoiser.process.sigma(first, noise))
    drawn = [
        recurrent_denoise(
            denoiser,
            rows,
            first,
            condition,
            steps=monitor.preview_steps,
            guidance=monitor.preview_cfg,
            empty=None if prompts.empty is None else resolved(prompts.empty),
        )
        for rows in x.split(batch_size)
    ]
    return torch.cat(drawn).float().cpu()


def _device(condition: Condition) -> torch.device:
    """Return where the model is, which is where its prompts are."""
    return next(iter(condition.tensors.values())).device


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Return a context without dropout; every module gets its own mode back."""
    training = [child for child in module.modules() if child.training]
    try:
        for child in training:
            child.training = False
        yield
    finally:
        for child in training:
            child.training = True
