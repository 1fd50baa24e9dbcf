"""The training loop, the same for every method."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import objectives
from .adapters import Adapter
from .config import TrainingPlan
from .datasets import Dataset, batches
from .denoiser import Condition, Conditions, Denoiser
from .errors import InputError, TrainingError
from .generators import generator
from .methods import METHODS, draw

log = logging.getLogger("domaingallery")

#: A run stops when this many steps in a row give a loss or gradient that is not finite.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Tell about a step just done: its number from 1, its unweighted terms and their weighted "total"."""

    step: int
    total_steps: int
    losses: dict[str, float]
    seconds_per_step: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """Hold what a run made: `Adapter.state_dict` and the finite values of each term over the steps."""

    state_dict: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    seconds: float


def train(
    denoiser: Denoiser,
    adapter: Adapter,
    dataset: Dataset,
    conditions: Conditions,
    plan: TrainingPlan,
    on_step: Callable[[StepEvent], None] | None = None,
) -> TrainingResult:
    """Train an adapter by a plan; the same plan, data and base give the same bytes.

    Args:
        on_step: called after each step; what it raises (an interrupt, too) ends the run.

    Raises:
        InputError: the plan needs images or prompts that are absent.
        TrainingError: losses or gradients stay non-finite; the adapter is as after the last good step.
    """
    began = time.perf_counter()
    device = adapter.parameters()[0].device
    with _training_mode(plan):
        dataset = dataset.restricted(**plan.reads()).map(_ordinary_tensor)
        _check_similarity(dataset, plan)
        conditions = _ordinary_conditions(conditions, plan, device)
        optimizer = make_optimizer(adapter, plan)
        order = batches(dataset, plan.batch_size, generator(plan.seed, "order"))
        noise = generator(plan.seed, "noise")
        history: dict[str, list[float]] = {}
        bad = 0
        for step in range(1, plan.steps + 1):
            batch = next(order).to(device)
            noised = draw(batch, denoiser.process, noise, plan.offset_noise)
            terms = METHODS[plan.method](denoiser, adapter, noised, conditions.part(batch.part), plan)
            values, finite = optimizer_step(optimizer, adapter, terms, plan)
            if finite:
                bad = 0
                for name, value in values.items():
                    history.setdefault(name, []).append(value)
            else:
                bad += 1
                log.warning("step %d: the loss or its gradient is not finite (%s); skipped", step, values)
                if bad >= PATIENCE:
                    raise TrainingError(
                        f"Expected finite losses, got {bad} steps in a row without ({values!r}). "
                        "Lower the learning rate, or use a model in float32 or bfloat16."
                    )
            if on_step is not None:
                on_step(StepEvent(step, plan.steps, values, (time.perf_counter() - began) / step))
        return TrainingResult(adapter.state_dict(), history, plan.steps, time.perf_counter() - began)


def make_optimizer(adapter: Adapter, plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return AdamW with the settings of the released code, in 32 bits."""
    parameters = adapter.parameters()
    return torch.optim.AdamW(
        parameters,
        lr=plan.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=plan.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def optimizer_step(
    optimizer: torch.optim.Optimizer, adapter: Adapter, terms: dict[str, Tensor], plan: TrainingPlan
) -> tuple[dict[str, float], bool]:
    """Step down the weighted sum; return the values of the terms and whether the step was taken."""
    loss = objectives.total(terms, plan.weights)
    named = {**terms, "total": loss}
    numbers = torch.stack([value.detach() for value in named.values()]).tolist()
    values = dict(zip(named, numbers, strict=True))
    if not all(map(math.isfinite, numbers)):
        return values, False
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), plan.max_grad_norm)
    if not math.isfinite(float(norm)):
        return values, False
    optimizer.step()
    return values, True


@contextlib.contextmanager
def _training_mode(plan: TrainingPlan) -> Iterator[None]:
    """Allow gradients, and give dropout its own random stream that leaves the caller's as it was."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(enabled=plan.dropout > 0):
        if plan.dropout > 0:
            torch.manual_seed(generator(plan.seed, "dropout").initial_seed())
        yield


def _check_similarity(dataset: Dataset, plan: TrainingPlan) -> None:
    """Raise InputError where the similarity term would compare images with themselves."""
    counts = [len(part.source) for part in dataset.parts() if part.source is not None]
    if plan.uses("similarity") and min(counts, default=0) < 3:
        raise InputError(
            f"Expected at least 3 source images of each category for the similarity term, got {min(counts)}. "
            "Draw more or set the similarity weight to 0."
        )


def _ordinary_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save; inference tensors are copied."""
    return tensor.clone() if tensor.is_inference() else tensor


def _ordinary_conditions(conditions: Conditions, plan: TrainingPlan, device: torch.device) -> Conditions:
    def ordinary(condition: Condition) -> Condition:
        return Condition({name: _ordinary_tensor(t) for name, t in condition.tensors.items()}).to(device)

    for needed, name in ((plan.needs_source(), "source"), (plan.needs_empty(), "empty")):
        if needed and getattr(conditions, name) is None:
            raise InputError(f"Expected the {name} prompt for this training, got none. Connect the prompts.")
    return conditions.map(ordinary)
