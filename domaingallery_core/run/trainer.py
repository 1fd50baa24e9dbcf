"""The training loop, the same for every method."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.parts import Batch, Part, Role, batches, read_parts
from ..errors import DomainGalleryError, InputError, TrainingError, shown
from ..generators import generator
from ..memory.fitting import Fitting, out_of_memory
from ..memory.rows import FewRows
from ..methods import draw, objectives
from ..methods.similarity import FEWEST_SOURCES
from ..model.denoiser import Condition, Denoiser
from ..trainables.trainable import Trainable
from .checkpoints import Checkpoints
from .monitor import Monitor, draw_previews, evaluation_mode, validation_loss, watched
from .optimizers import learning_rate
from .plan import TrainingPlan
from .state import RunState
from .text_encoder import text_encoder_rate
from .trial import Trial

log = logging.getLogger("domaingallery")

#: A run stops when this many steps in a row give a loss or gradient that is not finite.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class StepEvent:
    """Tell about a step just done.

    Attributes:
        step: its number from 1; 0 for a look at the model before the first.
        losses: its unweighted terms and their weighted "total"; empty where there is none to tell of.
        losses_so_far: the finite values of each term over all steps, those before a stop too.
        validation: the losses on fixed noise so far, by step.
        previews: latents (B C H W) that were drawn so far, by step.
    """

    step: int
    total_steps: int
    losses: dict[str, float]
    seconds_per_step: float
    losses_so_far: Mapping[str, Sequence[float]]
    validation: Mapping[int, float]
    previews: Mapping[int, Tensor]
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """Hold what a run made.

    Attributes:
        state_dict: that of what is trained, averaged if the plan says so.
        losses: the finite values of each term over the steps.
        resumed: the step of the checkpoint that the run went on from; 0 for none.
        validation: the loss on fixed noise, by step.
        previews: latents (B C H W) on the CPU, by step.
        skipped: how many steps were not finite, and changed nothing.
    """

    state_dict: dict[str, Tensor]
    losses: dict[str, list[float]]
    steps: int
    seconds: float
    resumed: int
    validation: dict[int, float]
    previews: dict[int, Tensor]
    skipped: int


def train(
    denoiser: Denoiser,
    trainable: Trainable,
    parts: Sequence[Part],
    plan: TrainingPlan,
    on_step: Callable[[StepEvent], None] | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    monitor: Monitor | None = None,
    enough: Callable[[], bool] | None = None,
    fitting: Fitting | None = None,
) -> TrainingResult:
    """Train by a plan; the same plan, data and base give the same bytes, also in several sittings.

    Args:
        parts: images and prompts; what the plan does not read of them is left alone.
        on_step: called after each step; what it raises (an interrupt, too) ends the run.
        checkpoints: where the run is kept, and goes on from; claimed. One is written when it ends, early or
            not; who called removes it when all that is made of the result is made.
        monitor: what to look at besides the losses; it changes nothing in the result.
        enough: asked after each step whether the run ends there, with what was learned; it is kept, too, and
            can go on from there.
        fitting: how the run is fitted into memory; without it, what runs out of it ends.

    Raises:
        InputError: the plan needs images or prompts that are absent, or the checkpoint is of another run.
        TrainingError: losses or gradients stay non-finite; what is trained is as after the last good step.
    """
    device = next(iter(trainable.named_parameters().values())).device
    with _training_mode(plan, device):
        monitor = monitor or Monitor()
        parts = read_parts(parts, plan.method.reads)
        check_similarity([part.source for part in parts if part.role == "domain"], plan)
        check_prompts(parts, plan, monitor)
        parts = [_ordinary(part, device) for part in parts]
        if fitting is not None:
            denoiser = fitting.denoiser = FewRows(denoiser)
            fitting.blocks.random = plan.dropout > 0
        run = _Run(denoiser, trainable, parts, plan, monitor, on_step, checkpoints, enough, fitting)
        try:
            run.begin()
            if fitting is not None:
                fitting.begin(Trial(denoiser, trainable, parts, plan), plan.optimizer.steps - run.state.step)
            run.go()
        except BaseException as stopped:
            if not isinstance(stopped, DomainGalleryError):
                run.keep_on_stop(stopped)
            raise
        return run.result()


class _Run:
    """Run a plan from where it stands to its end."""

    def __init__(
        self,
        denoiser: Denoiser,
        trainable: Trainable,
        parts: Sequence[Part],
        plan: TrainingPlan,
        monitor: Monitor,
        on_step: Callable[[StepEvent], None] | None,
        checkpoints: Checkpoints | None,
        enough: Callable[[], bool] | None,
        fitting: Fitting | None,
    ) -> None:
        self.began = self.going = time.perf_counter()
        self.denoiser, self.trainable, self.plan = denoiser, trainable, plan
        self.monitor, self.on_step, self.checkpoints = monitor, on_step, checkpoints
        self.enough = enough or (lambda: False)
        self.fitting = fitting
        self.state = RunState(trainable, plan)
        self.order = batches(parts, plan.data.batch_size, generator(plan.seed, "order"))
        self.start = 0
        self.kept = 0  # the step of the newest checkpoint; 0 for none
        self.watched = watched(parts)

    def begin(self) -> None:
        """Go on from a checkpoint, if there is one: the batches that were read are passed over."""
        if self.checkpoints is None or (found := self.checkpoints.load(self.state.restore)) is None:
            return
        self.start = self.kept = found.step
        for _ in range(found.step * self.plan.optimizer.accumulation):
            next(self.order)

    def go(self) -> None:
        """Do the steps that are left, and what a stop cut short after the last one that was done."""
        plan, state = self.plan, self.state
        self.going = time.perf_counter()
        if self._look(state.step) or state.step == plan.optimizer.steps:
            self._tell(state.step, {})
        for step in range(state.step + 1, plan.optimizer.steps + 1):
            values = self._step(step)
            self._look(step)
            last = step == plan.optimizer.steps or self.enough()
            if self.checkpoints is not None and (self.checkpoints.due(step) or last):
                self._keep()
            self._tell(step, values)
            if last:
                break
        if not state.losses:
            raise TrainingError(
                f"Expected finite losses, got none in {plan.optimizer.steps} steps. "
                "Lower the learning rate, or use a model in float32 or bfloat16."
            )

    def _keep(self) -> None:
        if self.checkpoints is not None and self.checkpoints.save(
            self.state.checkpoint(self.checkpoints.identity)
        ):
            self.kept = self.state.step

    def result(self) -> TrainingResult:
        """Return what the run made."""
        state = self.state
        with state.learned():
            weights = self.trainable.state_dict()
        seconds = time.perf_counter() - self.began
        return TrainingResult(
            weights, state.losses, state.step, seconds, self.start, state.validation, state.previews,
            state.skipped_in_all,
        )  # fmt: skip

    def keep_on_stop(self, stopped: BaseException) -> None:
        """Write a checkpoint of the last complete step; where that cannot be, say what is lost."""
        if self.checkpoints is None:
            return
        if self.state.whole and self.kept < self.state.step:
            self._keep()
        if self.kept < self.state.step:
            back = f"goes on from step {self.kept}" if self.kept else "begins anew"
            lost = f"The run was stopped after step {self.state.step} and could not be kept there; it {back}."
            log.warning("%s", lost)
            stopped.add_note(lost)

    def _step(self, step: int) -> dict[str, float]:
        """Do one step, again with less memory where it runs out; return the mean of each term."""
        reads = [next(self.order) for _ in range(self.plan.optimizer.accumulation)]
        while True:
            try:
                return self._done(step, reads)
            except Exception as error:
                if self.fitting is None or not self.state.whole or not out_of_memory(error):
                    raise
                given = error
            # What the step held is free only once nothing knows where it was raised.
            how = self._less(given.with_traceback(None))
            log.warning("Memory ran out in step %d, which is done again: %s.", step, how)
            del given

    def _less(self, error: Exception) -> str:
        """Go back to before the step, and take less memory from now on; raise the error where that is all."""
        assert self.fitting is not None
        self.state.back()
        how = self.fitting.less()
        if how is None:
            raise error
        return how

    def _done(self, step: int, reads: Sequence[Mapping[Role, Batch]]) -> dict[str, float]:
        """Do one step on what was read; return the mean of each term over its batches."""
        settings, state = self.plan.optimizer, self.state
        state.optimizer.zero_grad(set_to_none=True)
        found: list[dict[str, Tensor]] = []
        for given in reads:
            read = {role: batch.to(state.device) for role, batch in given.items()}
            found.append(self._backward(read))
        norm = torch.nn.utils.clip_grad_norm_([*state.parameters.values()], settings.max_grad_norm)
        # The only place in a step where the host waits for the device.
        numbers = torch.stack([*(value for each in found for value in each.values()), norm]).tolist()
        finite = all(map(math.isfinite, numbers))
        sums: dict[str, float] = {}
        for name, value in zip((name for each in found for name in each), numbers, strict=False):
            sums[name] = sums.get(name, 0.0) + value / settings.accumulation
        if finite:
            with state.changing():
                for group in state.optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step)
                with text_encoder_rate(state.parameters, settings):
                    state.optimizer.step()
                state.average.update()
                for name, value in sums.items():
                    state.losses.setdefault(name, []).append(value)
                state.skipped = 0
                state.done(step)
        else:
            self._skip(step, sums)
        return sums

    def _skip(self, step: int, values: dict[str, float]) -> None:
        """Pass over a step that is not finite.

        Raises:
            TrainingError: too many in a row were so.
        """
        state = self.state
        skipped = state.skipped + 1
        if skipped >= PATIENCE:
            raise TrainingError(
                f"Expected finite losses, got {skipped} steps in a row without ({values!r}). "
                "Lower the learning rate, or use a model in float32 or bfloat16."
            )
        log.warning("Step %d is skipped: its loss or the gradient is not finite.", step)
        state.skipped, state.skipped_in_all = skipped, state.skipped_in_all + 1
        state.done(step)

    def _backward(self, read: Mapping[Role, Batch]) -> dict[str, Tensor]:
        """Add the gradient of what is read; return its terms and their sum."""
        settings, process = self.plan.method, self.denoiser.process
        noised = draw(read, process, self.state.noise, settings.drawing)
        terms = settings.terms(self.denoiser, self.trainable, noised)
        regression = 1.0
        if settings.min_snr and settings.method.shares_timestep:
            timestep = next(iter(noised.values())).timestep
            regression = objectives.min_snr_weight(process, timestep, settings.min_snr)
        loss = settings.total(terms, regression=regression)
        if not loss.requires_grad:
            raise TrainingError(
                "Expected losses with a gradient, got some without: something on the model stops it. "
                "Take patches and wrappers off the model, one after the other."
            )
        (loss / self.plan.optimizer.accumulation).backward()
        return {name: value.detach() for name, value in {**terms, "total": loss}.items()}

    def _look(self, step: int) -> bool:
        """Read the validation loss and draw the pictures that are due, with the weights of a result.

        What fails in it is warned of and left out: the run needs none of it. Tell whether anything was due.
        """
        plan, monitor, state = self.plan, self.monitor, self.state
        reads = monitor.validates(step, plan.optimizer.steps) and step not in state.validation
        draws = monitor.draws(step, plan.optimizer.steps) and step not in state.previews
        if not (reads or draws):
            return False
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for root in self.trainable.roots:
                stack.enter_context(evaluation_mode(root))
            stack.enter_context(state.learned() if step else self.trainable.off())
            if reads:
                with _optional("The validation loss of step %d could not be read: %s", step):
                    state.validation[step] = validation_loss(
                        self.denoiser, self.watched, plan.data.batch_size
                    )
            if draws:
                with _optional("The pictures of step %d could not be drawn: %s", step):
                    state.previews[step] = self._pictures()
        return True

    def _pictures(self) -> Tensor:
        examples, prompts = self.watched[0]
        latents = draw_previews(
            self.denoiser, examples.latents, prompts, self.monitor, self.plan.data.batch_size
        )
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("they are not finite")
        return latents

    def _tell(self, step: int, values: dict[str, float]) -> None:
        if self.on_step is None:
            return
        state = self.state
        pace = (time.perf_counter() - self.going) / max(step - self.start, 1)
        rate = learning_rate(self.plan.optimizer, step) if step else 0.0
        steps = self.plan.optimizer.steps
        self.on_step(
            StepEvent(step, steps, values, pace, state.losses, state.validation, state.previews, rate)
        )


@contextlib.contextmanager
def _optional(message: str, step: int) -> Iterator[None]:
    """Return a context whose failure is warned of; a cancel passes through."""
    try:
        yield
    except Exception as error:
        log.warning(message, step, str(error))  # whoever keeps the record keeps no tensors


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


def check_similarity(sources: Sequence[Sized | None], plan: TrainingPlan) -> None:
    """Raise InputError where the similarity term would compare images with themselves.

    Args:
        sources: the source images of each part of the domain.
    """
    fewest = min((len(images) for images in sources if images is not None), default=FEWEST_SOURCES)
    if plan.method.uses("similarity") and fewest < FEWEST_SOURCES:
        raise InputError(
            f"Expected at least {FEWEST_SOURCES} source images of each category for the similarity term, got "
            f"{fewest}. Draw more or set the similarity weight to 0."
        )


def check_prompts(parts: Sequence[Part], plan: TrainingPlan, monitor: Monitor) -> None:
    """Raise InputError unless every part has the prompts that a run reads."""
    guided = monitor.preview_every > 0 and monitor.preview_cfg != 1.0
    for part in parts:
        for needed, name in (
            (part.source is not None, "source"),
            (part.role == "domain" and (plan.method.needs_empty() or guided), "empty"),
        ):
            if needed and getattr(part.prompts, name) is None:
                raise InputError(
                    f"Expected the {name} prompt of {shown(part.name)} for this training, got none. "
                    "Connect the prompts."
                )


def _ordinary(part: Part, device: torch.device) -> Part:
    """Return a part that autograd may save, its prompts on a device; inference tensors are copied."""

    def tensor(given: Tensor) -> Tensor:
        return given.clone() if given.is_inference() else given

    def prompt(given: Condition) -> Condition:
        return given.map(tensor).to(device)

    return replace(part.map(tensor), prompts=part.prompts.map(prompt))
