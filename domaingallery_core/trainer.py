"""The training loop, the same for every method."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import objectives
from .adapters import Adapter
from .checkpoints import Checkpoint, Checkpoints
from .config import TrainingPlan
from .datasets import Batch, Dataset, batches
from .denoiser import Condition, Conditions, Denoiser
from .errors import DomainGalleryError, FileError, InputError, TrainingError
from .generators import generator
from .memory import peak_memory
from .methods import METHODS, draw
from .monitor import Monitor, draw_previews, evaluation_mode, validation_loss, watched
from .optimizers import learning_rate
from .state import RunState

log = logging.getLogger("domaingallery")

#: A run stops when this many steps in a row give a loss or gradient that is not finite.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Tell about a step just done.

    Attributes:
        step: its number from 1; 0 for a look at the model before the first.
        losses: its unweighted terms and their weighted "total"; empty at step 0.
        validation: the loss on fixed noise, where it was read.
        preview: latents (B C H W) that the model draws now, where they were drawn.
        peak_memory: bytes of the device, on a CPU those of the process; None where that is not known.
    """

    step: int
    total_steps: int
    losses: dict[str, float]
    seconds_per_step: float
    learning_rate: float = 0.0
    validation: float | None = None
    preview: Tensor | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """Hold what a run made.

    Attributes:
        state_dict: that of the adapter, averaged if the plan says so.
        losses: the finite values of each term over the steps.
        resumed: the step of the checkpoint that the run went on from; 0 for none.
        validation: the loss on fixed noise, by step.
        previews: latents (B C H W) on the CPU, by step.
    """

    state_dict: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    seconds: float
    resumed: int = 0
    validation: dict[int, float] = field(default_factory=dict)
    previews: dict[int, Tensor] = field(default_factory=dict)


def train(
    denoiser: Denoiser,
    adapter: Adapter,
    dataset: Dataset,
    conditions: Conditions,
    plan: TrainingPlan,
    on_step: Callable[[StepEvent], None] | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    monitor: Monitor | None = None,
) -> TrainingResult:
    """Train an adapter by a plan; the same plan, data and base give the same bytes, also in several sittings.

    Args:
        on_step: called after each step; what it raises (an interrupt, too) ends the run.
        checkpoints: where the run is kept, and goes on from. One is written when it ends early.
        monitor: what to look at besides the losses; it changes nothing in the result.

    Raises:
        InputError: the plan needs images or prompts that are absent, or the checkpoint is of another run.
        FileError: a checkpoint cannot be written.
        TrainingError: losses or gradients stay non-finite; the adapter is as after the last good step.
    """
    device = adapter.parameters()[0].device
    with _training_mode(plan, device):
        dataset = dataset.restricted(**plan.reads()).map(_ordinary_tensor)
        _check_similarity(dataset, plan)
        conditions = _ordinary_conditions(conditions, plan, monitor, device)
        run = _Run(denoiser, adapter, dataset, conditions, plan, monitor or Monitor(), on_step)
        if checkpoints is not None and (found := checkpoints.load()) is not None:
            run.restore(found)
        try:
            run.go(checkpoints)
        except BaseException as stopped:
            if checkpoints is not None and not isinstance(stopped, DomainGalleryError):
                run.save_on_stop(checkpoints, stopped)
            raise
        if checkpoints is not None:
            checkpoints.finish()
        return run.result()


class _Run:
    """Run a plan from where it stands to its end."""

    def __init__(
        self,
        denoiser: Denoiser,
        adapter: Adapter,
        dataset: Dataset,
        conditions: Conditions,
        plan: TrainingPlan,
        monitor: Monitor,
        on_step: Callable[[StepEvent], None] | None,
    ) -> None:
        self.began = time.perf_counter()
        self.denoiser, self.adapter, self.conditions, self.plan = denoiser, adapter, conditions, plan
        self.monitor, self.on_step = monitor, on_step
        self.state = RunState(adapter, plan)
        self.order = batches(dataset, plan.batch_size, generator(plan.seed, "order"))
        self.start = 0
        self.watched = watched(dataset, conditions)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: the batches that were read are passed over."""
        self.state.restore(checkpoint)
        self.start = checkpoint.step
        for _ in range(checkpoint.step * self.plan.accumulation):
            next(self.order)

    def go(self, checkpoints: Checkpoints | None) -> None:
        """Do the steps that are left."""
        plan, state = self.plan, self.state
        if state.step == 0 and (looked := self._look(0)):
            self._tell(0, {}, looked)
        for step in range(state.step + 1, plan.steps + 1):
            values, finite = self._step(step)
            if finite:
                state.skipped = 0
                for name, value in values.items():
                    state.losses.setdefault(name, []).append(value)
            else:
                state.skipped += 1
                log.warning("step %d: the loss or its gradient is not finite (%s); skipped", step, values)
                if state.skipped >= PATIENCE:
                    raise TrainingError(
                        f"Expected finite losses, got {state.skipped} steps in a row without ({values!r}). "
                        "Lower the learning rate, or use a model in float32 or bfloat16."
                    )
            looked = self._look(step)
            state.done(step)
            if checkpoints is not None and checkpoints.due(step):
                checkpoints.save(state.checkpoint(checkpoints.identity))
            self._tell(step, values, looked)

    def result(self) -> TrainingResult:
        """Return what the run made."""
        state = self.state
        with state.average.applied():
            weights = self.adapter.state_dict()
        seconds = time.perf_counter() - self.began
        return TrainingResult(
            weights, state.losses, state.step, seconds, self.start, state.validation, state.previews
        )

    def save_on_stop(self, checkpoints: Checkpoints, stopped: BaseException) -> None:
        """Write a checkpoint of the last complete step; a full disk does not hide why the run ends."""
        if not self.state.whole or self.state.step in (0, self.start):
            return
        try:
            checkpoints.save(self.state.checkpoint(checkpoints.identity))
        except FileError as error:
            log.warning("%s", error)
            stopped.add_note(str(error))

    def _step(self, step: int) -> tuple[dict[str, float], bool]:
        """Do one step; return the mean of each term over its batches, and whether the weights moved."""
        plan, state = self.plan, self.state
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        finite = True
        for _ in range(plan.accumulation):
            values = self._backward(next(self.order).to(state.device))
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value / plan.accumulation
            finite = finite and all(map(math.isfinite, values.values()))
        if finite:
            norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), plan.max_grad_norm)
            finite = math.isfinite(float(norm))
        if finite:
            state.whole = False
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(plan, step)
            state.optimizer.step()
            state.average.update()
            state.whole = True
        return sums, finite

    def _backward(self, batch: Batch) -> dict[str, float]:
        """Add the gradient of one batch, if its loss is finite; return its terms and their sum."""
        plan = self.plan
        noised = draw(batch, self.denoiser.process, self.state.noise, plan.offset_noise)
        terms = METHODS[plan.method](
            self.denoiser, self.adapter, noised, self.conditions.part(batch.part), plan
        )
        regression = 1.0
        if plan.min_snr:
            regression = objectives.min_snr_weight(self.denoiser.process, noised.timestep, plan.min_snr)
        loss = objectives.total(terms, plan.weights, regression=regression)
        named = {**terms, "total": loss}
        numbers = torch.stack([value.detach() for value in named.values()]).tolist()
        if all(map(math.isfinite, numbers)):
            (loss / plan.accumulation if plan.accumulation > 1 else loss).backward()
        return dict(zip(named, numbers, strict=True))

    def _look(self, step: int) -> dict[str, Any]:
        """Return the validation loss and the pictures that are due, with the weights of a result."""
        plan, monitor, state = self.plan, self.monitor, self.state
        reads, draws = monitor.validates(step, plan.steps), monitor.draws(step, plan.steps)
        looked: dict[str, Any] = {}
        if not (reads or draws):
            return looked
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluation_mode(self.adapter.module))
            stack.enter_context(state.average.applied() if step else self.adapter.off())
            if reads:
                loss = validation_loss(self.denoiser, self.watched, plan.batch_size)
                state.validation[step] = looked["validation"] = loss
            if draws:
                examples, target = self.watched[0]
                empty = self.conditions.empty
                latents = draw_previews(self.denoiser, examples.latents, target, empty, monitor)
                state.previews[step] = looked["preview"] = latents
        return looked

    def _tell(self, step: int, values: dict[str, float], looked: dict[str, Any]) -> None:
        if self.on_step is None:
            return
        pace = (time.perf_counter() - self.began) / max(step - self.start, 1)
        rate = learning_rate(self.plan, step) if step else 0.0
        memory = peak_memory(self.state.device)
        self.on_step(StepEvent(step, self.plan.steps, values, pace, rate, peak_memory=memory, **looked))


@contextlib.contextmanager
def _training_mode(plan: TrainingPlan, device: torch.device) -> Iterator[None]:
    """Allow gradients, and give dropout its own random stream that leaves the caller's as it was."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices, enabled=plan.dropout > 0),
    ):
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


def _ordinary_conditions(
    conditions: Conditions, plan: TrainingPlan, monitor: Monitor | None, device: torch.device
) -> Conditions:
    def ordinary(condition: Condition) -> Condition:
        return Condition({name: _ordinary_tensor(t) for name, t in condition.tensors.items()}).to(device)

    guided = monitor is not None and monitor.preview_every > 0 and monitor.preview_guidance != 1.0
    for needed, name in ((plan.needs_source(), "source"), (plan.needs_empty() or guided, "empty")):
        if needed and getattr(conditions, name) is None:
            raise InputError(f"Expected the {name} prompt for this training, got none. Connect the prompts.")
    return conditions.map(ordinary)
