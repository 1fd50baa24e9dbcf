"""What losses ask a model for, evaluated together where the same weights and gradients are meant."""

from __future__ import annotations

import contextlib
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..model.denoiser import Denoiser, Prompt, denoise_together, resolved
from ..trainables.trainable import Trainable
from .noising import NoisedImages
from .objectives import reconstruction

T = TypeVar("T")


class Prediction:
    """What a model makes of noisy images under a prompt, evaluated when it is first looked at."""

    def __init__(self, ask: Ask, mode: tuple[bool, bool], images: NoisedImages, prompt: Prompt) -> None:
        self.images, self.prompt = images, prompt
        self._ask, self._mode = ask, mode
        self._x0: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """Return clean images (B C H W)."""
        if self._x0 is None:
            self._ask.evaluate(self._mode)
        assert self._x0 is not None
        return self._x0

    @property
    def value(self) -> Tensor:
        """Return what the family predicts (B C H W): noise, v or velocity."""
        if self._value is None:
            process = self._ask.denoiser.process
            self._value = process.prediction(self.images.x, self.x0, self.images.sigma)
        return self._value

    def reconstruction(self) -> Tensor:
        """Return Eq. 1: how far this is from what the images were noised with."""
        return reconstruction(self.value, self.images.wanted, self.images.mask, self.images.weight)


class Ask:
    """Take down what is asked for, and evaluate all of one mode in as few batches as prompts allow."""

    def __init__(self, denoiser: Denoiser, trainable: Trainable) -> None:
        self.denoiser, self.trainable = denoiser, trainable
        self._waiting: dict[tuple[bool, bool], list[Prediction]] = {}

    def __call__(
        self, images: NoisedImages, prompt: Prompt, *, trained: bool = True, gradient: bool = True
    ) -> Prediction:
        """Ask for a prediction.

        Args:
            prompt: one that learns is made when it is evaluated, in the same mode.
            trained: by the model as it is trained; otherwise by the frozen base, without gradient.
            gradient: whether there is to be one.
        """
        mode = trained, gradient and trained
        asked = Prediction(self, mode, images, prompt)
        self._waiting.setdefault(mode, []).append(asked)
        return asked

    def evaluate(self, mode: tuple[bool, bool]) -> None:
        """Evaluate what was asked for in a mode, (trained, gradient)."""
        waiting = self._waiting.pop(mode)
        trained, gradient = mode
        with contextlib.ExitStack() as stack:
            if not gradient:
                stack.enter_context(torch.no_grad())
            if not trained:
                stack.enter_context(self.trainable.off())
            parts = [(asked.images.x, asked.images.sigma, resolved(asked.prompt)) for asked in waiting]
            for asked, x0 in zip(waiting, denoise_together(self.denoiser, parts), strict=True):
                asked._x0 = x0


def needed(value: T | None, name: str) -> T:
    """Return value, or raise InputError that names what the training lacks."""
    if value is None:
        raise InputError(f"Expected {name} for this training, got none. Connect it.")
    return value
