"""Checkpoints of a run: one safetensors file each, whole or not there, from which a run goes on exactly."""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FileError, InputError
from .fingerprints import differences

log = logging.getLogger("domaingallery")

HEADER = "domaingallery.checkpoint"
_PATTERN = "step_*.safetensors"


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
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Checkpoints:
    """Keep the checkpoints of one run in a folder of their own.

    Attributes:
        identity: what decides the run, as `fingerprints.run_identity` tells it.
        every: steps between checkpoints; 0 for one when the run is stopped, removed when it is done.
        keep: how many remain; the oldest go first.
        resume: whether a run that was stopped goes on; otherwise its checkpoints are replaced.
        saved: the last file that was written.
    """

    folder: Path
    identity: dict[str, Any]
    every: int = 0
    keep: int = 1
    resume: bool = True
    saved: Path | None = None

    def load(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read, if the run is to go on from one.

        Raises:
            InputError: it is of a run with another plan, data or base model.
        """
        if not self.resume:
            return None
        for path in reversed(checkpoint_files(self.folder)):
            try:
                found = load_checkpoint(path)
            except FileError as error:
                log.warning("%s Trying an older one.", error)
                continue
            if changed := differences(found.identity, self.identity):
                raise InputError(
                    f"Expected to go on with the run in {self.folder.name!r}, got another one: "
                    f"{'; '.join(changed)}. Set these back, choose another run name, or start over."
                )
            return found
        return None

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint is wanted after a step."""
        return self.every > 0 and step % self.every == 0

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove those that are too many.

        Raises:
            FileError: the disk refuses, or a weight is not finite; earlier checkpoints are as they were.
        """
        path = self.folder / f"step_{checkpoint.step:06}.safetensors"
        replaced = [] if self.resume else checkpoint_files(self.folder)
        save_checkpoint(path, checkpoint)
        self.saved, self.resume = path, True
        for old in replaced:
            if old != path:
                old.unlink(missing_ok=True)
        for old in checkpoint_files(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def finish(self) -> None:
        """Remove the checkpoint of a stop, which a finished run needs no more."""
        if self.every == 0 and self.folder.is_dir():
            for path in checkpoint_files(self.folder):
                path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
            self.saved = None


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob(_PATTERN))


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at any moment, a kill or a full disk leaves either it or nothing.

    Raises:
        FileError: the disk refuses, or a weight is not finite.
    """
    stored = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in checkpoint.tensors.items()}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FileError(f"Expected finite weights, got NaN or infinity in {name!r}. Nothing was written.")
    header = {"step": checkpoint.step, "identity": checkpoint.identity, "numbers": checkpoint.numbers}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(".step_*.part"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        save_file(stored, temporary, metadata={"format": "pt", HEADER: json.dumps(header)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"Expected to write the checkpoint {path.name!r} into {str(path.parent)!r}, got: {error}. "
            "Check the space and the rights there."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileError: the file is absent, damaged, or none.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return Checkpoint(header["step"], header["identity"], tensors, header["numbers"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"Expected a checkpoint at {str(path)!r}, got: {error}. Remove it.") from error
