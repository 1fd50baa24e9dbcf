"""How a run is fitted into the memory that is free: a trial before it, and less where it runs out."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .blocks import Blocks
from .kept import Kept, NotCounted, counting
from .rows import FewRows

#: Of what is free a step may take so much; the rest is for what cannot be foreseen.
SHARE = 0.85
#: A run of fewer steps is not tried first, beyond what is needed to choose the blocks.
WORTH = 50


class Trial(Protocol):
    """One step that changes nothing: of the largest batch that a run reads."""

    modules: tuple[nn.Module, ...]
    learning: list[nn.Parameter]

    def loss(self) -> Tensor:
        """Return the loss of the step."""
        ...

    def step(self) -> None:
        """Compute the loss and its gradient, and let go of both."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Say what a step takes, as a trial found it.

    Attributes:
        activations: bytes that a step takes at most, beside the model and what learns.
        plain, least: the same with no block computed again, and with all of them.
        learning: bytes of the gradients and moments of what learns.
        free: bytes that were free before the first step.
        again, blocks: how many blocks are computed again, and how many there are.
        steps: how many are left.
        seconds: of one step; None where none was tried.
        row: seconds of the evaluation of one row.
    """

    activations: int
    plain: int
    least: int
    learning: int
    free: int
    again: int
    blocks: int
    steps: int
    seconds: float | None
    row: float

    @property
    def needed(self) -> int:
        """Return the bytes that are needed of those that are free."""
        return self.activations + self.learning


class Fitting:
    """Fit a run into memory.

    Attributes:
        estimate: what the trial found; None before it, and where there was none.
        denoiser: the model as the run evaluates it.
    """

    def __init__(
        self,
        blocks: Blocks,
        free: Callable[[], int],
        *,
        chooses: bool,
        passed: Callable[[Tensor], bool] = lambda tensor: False,
        told: Callable[[Estimate], None] = lambda estimate: None,
    ) -> None:
        """Take over the blocks of a model.

        Args:
            free: returns how many bytes are free where the model is.
            chooses: whether blocks are computed again as needed; otherwise as they are set.
            passed: tells whether a tensor is a copy of a weight that is not kept.
            told: is given the estimate.
        """
        self.blocks, self.free, self.chooses = blocks, free, chooses
        self.passed, self.told = passed, told
        self.estimate: Estimate | None = None
        self.denoiser: FewRows | None = None

    def begin(self, trial: Trial, steps: int) -> None:
        """Choose the blocks that are computed again, and estimate what the steps that are left take.

        Where memory runs out meanwhile less is taken, or nothing is known; the run begins in any case.
        """
        tries = steps >= WORTH
        if not steps or not (tries or (self.chooses and len(self.blocks))):
            return
        kept = self._counted(trial)
        if kept is None:
            self.blocks.again = self.blocks.all if self.chooses else self.blocks.again
            return
        count, row = kept
        moments = 3 * sum(weight.nbytes for weight in trial.learning)
        free = self.free()
        if self.chooses:
            self.blocks.again = count.fewest(self.blocks, SHARE * free - moments)
        seconds, taken = self._tried(trial) if tries else (None, 0)
        if self.chooses and taken > (room := SHARE * free - moments):
            # More than was counted: what kernels take beside what is kept.
            self.blocks.again |= count.fewest(self.blocks, room - (taken - self._peak(count)))
        peak = max(self._peak(count), taken)
        self.estimate = Estimate(
            activations=peak, plain=count.peak(self.blocks.always), least=count.peak(self.blocks.all),
            learning=moments, free=free, again=len(self.blocks.again), blocks=len(self.blocks),
            steps=steps, seconds=seconds, row=row,
        )  # fmt: skip
        self.told(self.estimate)

    def _peak(self, count: Kept) -> int:
        return count.peak(self.blocks.again)

    def _counted(self, trial: Trial) -> tuple[Kept, float] | None:
        """Return what a step keeps, and the seconds of a row; None where it cannot be told."""
        assert self.denoiser is not None
        fixed = [t for module in trial.modules for t in (*module.parameters(), *module.buffers())]
        began, rows = time.perf_counter(), self.denoiser.evaluated
        while True:
            try:
                with counting(self.blocks, [*fixed, *trial.learning], self.passed) as kept:
                    trial.loss()
                rows = self.denoiser.evaluated - rows
                return kept, (time.perf_counter() - began) / max(rows, 1)
            except NotCounted:
                return None
            except Exception as error:
                if not out_of_memory(error):
                    raise
            if self.less() is None:
                return None

    def _tried(self, trial: Trial) -> tuple[float | None, int]:
        """Return the seconds of a step, and what it took on a GPU at most, beyond what was there."""
        device = trial.learning[0].device
        while True:
            before = 0
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            began = time.perf_counter()
            try:
                trial.step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                    return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) - before
                return time.perf_counter() - began, 0
            except Exception as error:
                if not out_of_memory(error):
                    raise
            if self.less() is None:
                return None, 0

    def less(self) -> str | None:
        """Take less memory from now on, and say how; None where nothing more can be done here."""
        give_back()
        if self.chooses and len(self.blocks.again) < len(self.blocks):
            self.blocks.again = self.blocks.all
            return "all blocks are computed again in the backward pass from now on"
        if self.denoiser is None or (most := self.denoiser.most or self.denoiser.seen) < 2:
            return None
        self.denoiser.most = -(-most // 2)
        return (
            f"at most {self.denoiser.most} images are evaluated at once from now on, in place of {most}; the "
            "last digits of what is learned may differ for it"
        )


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that no memory is left, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def give_back() -> None:
    """Give memory back that nothing uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
