"""How a training is fitted into memory, and what its node says of that."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...domaingallery_core.errors import OutOfMemory
from ...domaingallery_core.memory.blocks import Blocks
from ...domaingallery_core.memory.fitting import Estimate, Fitting, out_of_memory
from ...domaingallery_core.run.monitor import IMAGES
from ...domaingallery_core.run.plan import TrainingPlan
from ..host.network.memory import Computing
from ..host.network.offloading import at_home
from ..sockets import CHECKPOINTING, RunOptions
from .data import Pair
from .live import Live
from .run_options import monitor_of

log = logging.getLogger("domaingallery")

#: How many batches a step evaluates at once: target images, and source images under two prompts.
TOGETHER = 3
MOVED_FOR_NOTHING = (
    "The model is in system memory already; offload moves its blocks within that, which saves nothing."
)


class Fit:
    """Fit a training into memory, and say so.

    Attributes:
        home: blocks whose weights stay in system memory.
    """

    def __init__(
        self, model: ModelPatcher, plan: TrainingPlan, options: RunOptions, pairs: Sequence[Pair], live: Live
    ) -> None:
        self.model, self.plan, self.options, self.live = model, plan, options, live
        self.images = sum(min(len(part.target or part.source), IMAGES) for _, part in pairs)
        latents = max((part.source.latents for _, part in pairs), key=lambda latents: latents[0].numel())
        self.home: list[nn.Module] = []
        if plan.trains != "weights":  # whose copies are on the device
            rows = TOGETHER * plan.data.batch_size
            self.home = at_home(model, options.offload, (rows, *latents.shape[1:]))
        if self.home and comfy.model_management.is_device_cpu(model.load_device):
            log.warning(MOVED_FOR_NOTHING)
        self._fitting: Fitting | None = None

    def fitting(self, blocks: Blocks, computing: Computing) -> Fitting:
        """Return how the run is fitted into memory."""
        self._fitting = Fitting(
            blocks,
            lambda: comfy.model_management.get_free_memory(self.model.load_device),
            chooses=self.options.gradient_checkpointing == CHECKPOINTING[0],
            passed=computing.passed,
            told=self._told,
        )
        return self._fitting

    @contextmanager
    def advised(self) -> Iterator[None]:
        """Return a context in which an error for want of memory says what helps.

        Raises:
            OutOfMemory: memory ran out.
        """
        try:
            yield
        except Exception as error:
            if not out_of_memory(error) or isinstance(error, OutOfMemory):
                raise
            raise OutOfMemory(self._message()) from error

    def _told(self, estimate: Estimate) -> None:
        """Show an estimate on the node, and warn where more is needed than is free."""
        self.live.note = self.line(estimate)
        self.live.progress.say(self.live.note)
        if estimate.needed > estimate.free:
            log.warning(
                "A step takes about %s beside the model, and %s are free, which may not do. %s",
                gb(estimate.needed), gb(estimate.free), self.advice(),
            )  # fmt: skip

    def line(self, estimate: Estimate) -> str:
        """Return a line about the time and memory that a training takes."""
        management, device = comfy.model_management, self.model.load_device
        weights = sum(weight.nbytes for weight in self.model.model.parameters()) - self._at_home()
        time, trial = "", "a trial"
        if estimate.seconds is not None:
            looks = monitor_of(self.options).rows(
                self.plan.optimizer.steps - estimate.steps, self.plan.optimizer.steps, self.images
            )
            steps = estimate.steps * self.plan.optimizer.accumulation
            time = f"{about(steps * estimate.seconds + looks * estimate.row)} and "
            trial = "a trial of one step"
        total = management.get_total_memory(device)
        text = f"about {time}{gb(weights + estimate.needed)} of {gb(total)}, from {trial}"
        if estimate.again:
            text += f"; {estimate.again} of {estimate.blocks} blocks are computed twice"
        if self.home:
            text += f"; {gb(self._at_home())} of the model stay in system memory"
        return text

    def advice(self) -> str:
        """Return what helps where memory does not do, in the order in which it is to be tried."""
        fitting, size, found = self._fitting, self.plan.data.batch_size, []
        estimate = None if fitting is None else fitting.estimate

        def add(text: str, figure: Callable[[Estimate], str]) -> None:
            found.append(text if estimate is None else f"{text} ({figure(estimate)})")

        if fitting is not None and len(fitting.blocks.again) < len(fitting.blocks):
            add(
                "set gradient_checkpointing in Domain Run Options to on",
                lambda e: f"a step then takes {gb(e.least)} in place of {gb(e.plain)}",
            )
        if size > 1:
            add(
                f"lower batch_size in Domain Training Options from {size}",
                lambda e: f"each image takes about {gb(e.activations / size)}",
            )
        add(
            "train on smaller images",
            lambda e: f"half as wide and high they take about {gb(e.activations / 4)}",
        )
        on_card = not comfy.model_management.is_device_cpu(self.model.load_device)
        if on_card and self.plan.trains != "weights" and self.options.offload != "on":
            size_on_card = self.model.model_size() - self._at_home()
            found.append(
                f"set offload in Domain Run Options to on ({gb(size_on_card)} of the model are on the device)"
            )
        return f"In the order that helps: {'; '.join(found)}."

    def _message(self) -> str:
        got, fitting = "none left", self._fitting
        if fitting is not None and (estimate := fitting.estimate) is not None:
            got += f": a step takes about {gb(estimate.needed)} beside the model, of {gb(estimate.free)} free"
        if fitting is not None and fitting.denoiser is not None and fitting.denoiser.most is not None:
            got += f", and {fitting.denoiser.most} image at once was tried"
        return f"Expected enough memory for this training, got {got}. {self.advice()}"

    def _at_home(self) -> int:
        return sum(weight.nbytes for block in self.home for weight in block.parameters())


def gb(size: float) -> str:
    """Return a number of bytes in words, with two digits that say something."""
    for unit, name in ((2**30, "GB"), (2**20, "MB")):
        if size >= 0.95 * unit or name == "MB":
            value = size / unit
            return f"{value:.0f} {name}" if value >= 9.5 else f"{value:.1f} {name}"
    raise AssertionError


def about(seconds: float) -> str:
    """Return a time in words, as exactly as an estimate is."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
