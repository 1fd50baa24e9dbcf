"""What moves the weights: AdamW, the learning rate over the steps, and a moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..plan import TrainingPlan


def make_optimizer(parameters: list[nn.Parameter], plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return AdamW with the settings of the released code, in 32 bits or, if the plan says so, in 8.

    Raises:
        InputError: 8 bits are asked for and bitsandbytes is absent.
    """
    options = {
        "lr": plan.learning_rate,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": plan.weight_decay,
    }
    if plan.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                f"Expected the package bitsandbytes for the optimizer 'adamw8bit', got: {error}. "
                "Install bitsandbytes, or choose 'adamw'."
            ) from error
        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **options)


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Return the learning rate of a step, counted from 1."""
    if step <= plan.warmup_steps:
        return plan.learning_rate * step / plan.warmup_steps
    if plan.schedule == "constant":
        return plan.learning_rate
    done = (step - plan.warmup_steps - 1) / (plan.steps - plan.warmup_steps)
    return plan.learning_rate * (
        1 - done if plan.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    )


class MovingAverage:
    """Average named weights exponentially; the n-th update decays by at most (1 + n) / (10 + n)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.values = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the averages are the weights; without a decay nothing changes."""
        kept: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                for name, value in self.values.items():
                    kept[name] = self.parameters[name].detach().clone()
                    self.parameters[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)
