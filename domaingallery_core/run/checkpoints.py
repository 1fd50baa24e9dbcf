"""Checkpoints of a run: one safetensors file each, whole or not there, from which a run goes on exactly."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError, InputError, shown
from ..files.writing import LOCK, claimed, clear_leftovers, load_tensors, save_tensors
from .identity import differences

log = logging.getLogger("domaingallery")

HEADER = "domaingallery.checkpoint"
#: Seconds between two checkpoints where no number of steps is asked for.
INTERVAL = 180.0
#: A message names at most so many differences between two runs.
MOST_NAMED = 6
#: How many processes may be at the same run at once, each in a folder of its own.
MOST_AT_ONCE = 9


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Hold a run after a step.

    Attributes:
        identity: what decides the run; it goes on only where this is the same.
        tensors: weights, moments, averages, generator states, losses, pictures.
        numbers: the rest, as JSON can hold it.
    """

    step: int
    identity: dict[str, Any]
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(slots=True)
class Checkpoints:
    """Keep the checkpoints of one run in a folder of their own.

    Attributes:
        folder: where they are, unless another process has it.
        identity: what decides the run, as `identity.run_identity` tells it.
        every: steps between checkpoints that stay when the run is done; 0 for those of every few minutes
            alone, which are removed then.
        keep: how many remain; the oldest go first.
        resume: whether a run that was stopped goes on; otherwise its checkpoints are replaced.
        interval: seconds after which one is written in any case.
        saved: the last file that was written or gone on from.
        finished: whether the run is done, and what a finished run needs no more is being removed.
        place: the folder that is claimed: `folder`, or one beside it.
    """

    folder: Path
    identity: dict[str, Any]
    every: int = 0
    keep: int = 1
    resume: bool = True
    interval: float = INTERVAL
    saved: Path | None = None
    finished: bool = False
    place: Path = field(init=False)
    _written: float = field(init=False)

    def __post_init__(self) -> None:
        self.place, self._written = self.folder, time.monotonic()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Have the folder to oneself; where another process trains the same, one beside it.

        Raises:
            InputError: so many processes train the same that none of the folders is free.
        """
        with contextlib.ExitStack() as stack:
            for folder in self._folders():
                if stack.enter_context(claimed(folder)):
                    self.place = folder
                    break
            else:  # a disk that refuses is no other process; what cannot be written is warned of later
                if all((folder / LOCK).is_file() for folder in self._folders()):
                    raise InputError(
                        f"Expected at most {MOST_AT_ONCE} trainings of {shown(self.folder.name)} at once, "
                        "got one more. Wait until one of them has ended, or choose another run name."
                    )
            for folder in filter(Path.is_dir, self._folders()):
                clear_leftovers(folder)
                with claimed(folder):  # the lock of a process that was killed goes with this
                    pass
            yield

    def load(self, restore: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """Restore the newest checkpoint that can be, if the run is to go on from one; return it.

        Raises:
            InputError: it is of a run with another plan, data or base model.
        """
        if not self.resume:
            return None
        found = [path for folder in self._folders() for path in checkpoint_files(folder)]
        for path in sorted(found, key=lambda path: path.name, reverse=True):
            try:
                checkpoint = load_checkpoint(path)
                if changed := differences(checkpoint.identity, self.identity):
                    more = [f"and {len(changed) - MOST_NAMED} more"] if len(changed) > MOST_NAMED else []
                    named = "; ".join(changed[:MOST_NAMED] + more)
                    raise InputError(
                        f"Expected to go on with the run in {shown(path.parent.name)}, got another one: "
                        f"{named}. Set these back, choose another run name, or start over."
                    )
                restore(checkpoint)
            except FileError as error:
                log.warning("The checkpoint %s is passed over. %s", path.name, str(error))
                continue
            self.saved = path
            return checkpoint
        return None

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint is wanted after a step."""
        asked = self.every > 0 and step % self.every == 0
        return asked or time.monotonic() - self._written >= self.interval

    def save(self, checkpoint: Checkpoint) -> bool:
        """Write a checkpoint, then remove those that are too many; tell whether the disk took it.

        A disk that refuses does not end a run: it is warned of, and the earlier checkpoints stay.
        """
        self._written = time.monotonic()
        path = self.place / f"step_{checkpoint.step:06}.safetensors"
        try:
            save_checkpoint(path, checkpoint)
        except FileError as error:
            log.warning("Step %d is not kept. %s", checkpoint.step, str(error))
            return False
        if not self.resume:
            self._clear(but=path)
        others = [old for old in checkpoint_files(self.place) if old != path]
        later = [
            old for old in others if old.name > path.name
        ]  # damaged, or they would have been gone on from
        earlier = [old for old in others if old not in later]
        for old in [*later, *earlier[: max(len(earlier) + 1 - self.keep, 0)]]:
            _remove(old)
        self.saved, self.resume = path, True
        return True

    def finish(self) -> None:
        """Remove what a finished run needs no more."""
        if self.every == 0:
            self.saved, self.finished = None, True
            self._clear()

    def _clear(self, but: Path | None = None) -> None:
        """Remove the checkpoints of the run, those of processes that are gone as well."""
        for folder in filter(Path.is_dir, self._folders()):
            with contextlib.nullcontext(True) if folder == self.place else claimed(folder) as free:
                for path in checkpoint_files(folder) if free else ():
                    if path != but:
                        _remove(path)

    def _folders(self) -> list[Path]:
        """Return the folder of the run, and those beside it for further processes at the same time."""
        more = (self.folder.with_name(f"{self.folder.name}-{n}") for n in range(2, MOST_AT_ONCE + 1))
        return [self.folder, *more]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("The checkpoint %s cannot be removed: %s.", path.name, error.strerror)


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step_*.safetensors") if path.is_file())


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at any moment, a kill or a full disk leaves either it or nothing.

    Raises:
        FileError: the disk refuses, or a weight is not finite.
    """
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileError(f"Expected finite weights, got NaN or infinity in {name!r}. Nothing was written.")
    header = {"step": checkpoint.step, "identity": checkpoint.identity, "numbers": checkpoint.numbers}
    save_tensors(path, checkpoint.tensors, {"format": "pt", HEADER: json.dumps(header)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileError: the file is absent, damaged, or none.
    """
    tensors, metadata = load_tensors(path)
    try:
        header = json.loads(metadata[HEADER])
        step, identity, numbers = header["step"], header["identity"], header["numbers"]
        if not (isinstance(step, int) and isinstance(identity, dict) and isinstance(numbers, dict)):
            raise ValueError("its header has other values")
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"Expected a checkpoint at {str(path)!r}, got: {error}. Remove it.") from error
    return Checkpoint(step, identity, tensors, numbers)
