"""One step of a run that changes nothing of it, to see what a step takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.parts import ROLES, Batch, Part, Role, batches
from ..generators import generator
from ..methods import NoisedStep, draw
from ..model.denoiser import Denoiser
from ..trainables.trainable import Trainable
from .plan import TrainingPlan

#: How often a timestep is drawn at most.
DRAWS = 100


class Trial:
    """Be one step on the largest batch that a run reads, with images and noise of its own streams.

    Attributes:
        modules: what it goes through.
        learning: what learns.
    """

    def __init__(
        self, denoiser: Denoiser, trainable: Trainable, parts: Sequence[Part], plan: TrainingPlan
    ) -> None:
        self.denoiser, self.trainable, self.plan = denoiser, trainable, plan
        self.modules = tuple(trainable.roots)
        self.learning = [*trainable.named_parameters().values()]
        self._parts = largest(parts)

    def loss(self) -> Tensor:
        """Return the loss of the step."""
        device, settings = self.learning[0].device, self.plan.method
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return settings.total(settings.terms(self.denoiser, self.trainable, self._noised(device)))

    def step(self) -> None:
        """Compute the loss and its gradient, and let go of both."""
        loss = self.loss()
        if loss.requires_grad:  # what is computed again draws as it did, and puts the random state back
            torch.autograd.grad(loss, self.learning, allow_unused=True)

    def _noised(self, device: torch.device) -> NoisedStep:
        """Return noisy images at a timestep from which all of the recurrence is gone through."""
        stream = generator(self.plan.seed, "trial")
        read = next(batches(self._parts, self.plan.data.batch_size, stream))
        on_device: dict[Role, Batch] = {role: batch.to(device) for role, batch in read.items()}
        for _ in range(DRAWS):
            noised = draw(on_device, self.denoiser.process, stream, self.plan.method.drawing)
            if next(iter(noised.values())).timestep >= self.plan.method.denoise_steps:
                break
        return noised


def largest(parts: Sequence[Part]) -> list[Part]:
    """Return the part of each role whose latents are the largest."""
    own = [[part for part in parts if part.role == role] for role in ROLES]
    return [max(some, key=_size) for some in own if some]


def _size(part: Part) -> int:
    examples = part.target or part.source
    assert examples is not None
    return examples.latents[0].numel()
