"""What moves the weights: AdamW, and the learning rate over the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from ..errors import InputError
from ..settings import Settings, check_number, setting

Optimizer = Literal["adamw", "adamw8bit"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings(Settings):
    """Say how the weights move, and for how many steps.

    Attributes:
        max_grad_norm: gradients are clipped to this L2 norm.
    """

    steps: int = setting(1000, least=1)
    learning_rate: float = setting(1e-4, above=True)
    accumulation: int = setting(
        1,
        "Batches whose gradients make one step, for the effect of a larger batch in the memory of a small "
        "one. Takes as many times longer.",
        least=1, most=1000,
    )  # fmt: skip
    schedule: str = setting(
        "constant", "How the learning rate goes down over the steps.", choices=get_args(Schedule)
    )
    warmup_steps: int = setting(0, "Steps in which the learning rate rises from near 0.", most=100000)
    ema: float = setting(
        0.0,
        "Decay of a moving average over the steps, which becomes the LoRA: 0.99 smooths the last hundred. 0 "
        "for none.",
        most=0.99999, step=0.001, digits=5,
    )  # fmt: skip
    optimizer: str = setting(
        "adamw",
        "adamw8bit needs the package bitsandbytes and saves little for a LoRA.",
        choices=get_args(Optimizer),
    )
    max_grad_norm: float = setting(1.0, above=True)
    weight_decay: float = setting(1e-2)
    text_encoder_rate: float = setting(
        0.0,
        "Learning rate of the text encoder, where one learns: commonly half that of the model, or less. 0 is "
        "that of the model.",
        most=1.0, step=1e-6,
    )  # fmt: skip

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        check_number("warmup_steps", self.warmup_steps, least=0, whole=True, most=self.steps)


def make_optimizer(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return AdamW with the settings of the released code, in 32 bits or, if the plan says so, in 8.

    Raises:
        InputError: 8 bits are asked for and bitsandbytes is absent.
    """
    options = {
        "lr": settings.learning_rate,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                f"Expected the package bitsandbytes for the optimizer 'adamw8bit', got: {error}. "
                "Install bitsandbytes, or choose 'adamw'."
            ) from error
        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cpu", "cuda"), **options)


def learning_rate(settings: OptimizerSettings, step: int) -> float:
    """Return the learning rate of a step, counted from 1."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps - 1) / (settings.steps - settings.warmup_steps)
    return settings.learning_rate * (
        1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    )
