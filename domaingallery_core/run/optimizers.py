"""What moves the weights: a row for each optimizer, and the learning rate over the steps."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import InputError
from ..settings import Settings, check_number, setting

Schedule = Literal["constant", "linear", "cosine"]


Make = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Say what a run must know of an optimizer.

    Attributes:
        make: (parameters, learning rate, weight decay) -> the optimizer.
        package: what has to be installed for it, as the package index calls it; empty for none.
        rate: the learning rate that it takes by default; None for that of the method.
        averages: whether it has train() and eval(), as what it learns is an average over the steps.
    """

    make: Make
    package: str = ""
    rate: float | None = None
    averages: bool = False


def _adamw(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=rate, **MOMENTS, weight_decay=decay, fused=fused)


def _adamw8bit(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    make = importlib.import_module("bitsandbytes.optim").AdamW8bit
    return make(parameters, lr=rate, **MOMENTS, weight_decay=decay)


def _adafactor(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """Return Adafactor; its steps are relative to the size of what it moves (Shazeer and Stern 2018)."""
    return torch.optim.Adafactor(parameters, lr=rate, weight_decay=decay)


def _prodigy(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """Return Prodigy (Mishchenko and Defazio 2023), with the corrections that are usual for a LoRA."""
    make = importlib.import_module("prodigyopt").Prodigy
    optimizer = make(parameters, lr=rate, **MOMENTS, use_bias_correction=True, safeguard_warmup=True)
    optimizer.param_groups[0]["weight_decay"] = decay  # which it would print, if it were told before
    return optimizer


def _schedule_free(parameters: list[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """Return AdamW without a schedule (Defazio et al. 2024)."""
    make = importlib.import_module("schedulefree").AdamWScheduleFree
    optimizer = make(parameters, lr=rate, **MOMENTS, weight_decay=decay)
    optimizer.train()
    return optimizer


#: As in the released code.
MOMENTS: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}
OPTIMIZERS = {
    "adamw": Kind(make=_adamw),
    "adamw8bit": Kind(make=_adamw8bit, package="bitsandbytes"),
    "adafactor": Kind(make=_adafactor, rate=1e-2),
    "prodigy": Kind(make=_prodigy, package="prodigyopt", rate=1.0),
    "adamw_schedulefree": Kind(make=_schedule_free, package="schedulefree", averages=True),
}


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
        "adamw is the paper's. prodigy finds the learning rate by itself: the default of a training is 1 "
        "then, and 0.01 for adafactor, which moves weights by a share of their size. adamw_schedulefree "
        "averages over the steps. Needed packages: bitsandbytes for adamw8bit, which saves little for a "
        "LoRA, prodigyopt, schedulefree.",
        choices=tuple(OPTIMIZERS),
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
        if self.kind.averages and (self.schedule, self.ema) != ("constant", 0.0):
            raise InputError(
                f"Expected the schedule constant and ema 0 for the optimizer {self.optimizer!r}, which needs "
                f"none and averages by itself, got {self.schedule!r} and {self.ema:g}. Set these."
            )
        if self.kind.averages and self.text_encoder_rate:
            raise InputError(
                f"Expected one learning rate for all that learns by the optimizer {self.optimizer!r}, which "
                f"averages what its steps made, got {self.text_encoder_rate:g} for the text encoder. Set "
                "text_encoder_rate to 0, or choose 'adamw'."
            )

    @property
    def kind(self) -> Kind:
        """Return what there is to know of the optimizer."""
        return OPTIMIZERS[self.optimizer]


def default_rate(optimizer: str, of_method: float) -> float:
    """Return the learning rate that an optimizer takes where nothing is said."""
    kind = OPTIMIZERS.get(optimizer)
    return of_method if kind is None or kind.rate is None else kind.rate


def check_package(optimizer: str) -> None:
    """Raise InputError where the package of an optimizer is not installed."""
    package = OPTIMIZERS[optimizer].package
    if package and not _is_there(package):
        raise InputError(
            f"Expected the package {package} for the optimizer {optimizer!r}, got none. Install it for the "
            f"Python of ComfyUI (python -m pip install {package}), or choose 'adamw'."
        )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is imported, and says nothing of where it is from
        return True


def make_optimizer(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimizer of a plan; adamw has the settings of the released code.

    Raises:
        InputError: its package is absent, or does not work here.
    """
    check_package(settings.optimizer)
    try:
        return settings.kind.make(parameters, settings.learning_rate, settings.weight_decay)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"Expected a working package {settings.kind.package} for the optimizer {settings.optimizer!r}, "
            f"got: {error}. Install it again, or choose 'adamw'."
        ) from error


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> Iterator[None]:
    """Return a context in which the weights are those that an optimizer learned; then, to the bit, as before.

    Most move these themselves. Schedule-free ones move others, and come back to these only nearly.
    """
    if not settings.kind.averages:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    try:
        optimizer.eval()  # type: ignore[attr-defined]
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


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
