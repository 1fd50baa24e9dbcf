"""Errors raised at the n-th call of an operation of a run."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

#: What is raised, by name. An interrupt of the host is a BaseException.
FAULTS: dict[str, Callable[[], BaseException]] = {
    "interrupt": lambda: sys.modules["comfy.model_management"].InterruptProcessingException(),
    "out of memory": lambda: torch.OutOfMemoryError("injected: out of memory"),
    "full disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "error": lambda: RuntimeError("injected"),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """Name a function that a run calls, and where it is found.

    Attributes:
        after: raise when the call is done, not before it.
    """

    name: str
    owner: Any
    attribute: str
    after: bool = False


class Injector:
    """Count the calls of operations, and raise at one of them.

    Attributes:
        calls: how often each was called, by name.
        raised: the errors that were raised.
    """

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = {operation.name: operation for operation in operations}
        self.calls: Counter[str] = Counter()
        self.raised: list[BaseException] = []
        self._armed: tuple[str, int, str] | None = None

    @contextmanager
    def armed(self, name: str = "", n: int = 0, fault: str = "") -> Iterator[None]:
        """Return a context in which the n-th call (from 1) of an operation raises; with no name none does."""
        self.calls.clear()
        self.raised.clear()
        self._armed = (name, n, fault) if name else None
        with pytest.MonkeyPatch.context() as patch:
            for place in {(id(o.owner), o.attribute): o for o in self.operations.values()}.values():
                self._wrap(patch, place.owner, place.attribute)
            yield

    def _wrap(self, patch: pytest.MonkeyPatch, owner: Any, attribute: str) -> None:
        ours = [o for o in self.operations.values() if o.owner is owner and o.attribute == attribute]
        original = getattr(owner, attribute)

        def called(*args: Any, **options: Any) -> Any:
            for operation in ours:
                if not operation.after:
                    self._count(operation.name)
            found = original(*args, **options)
            for operation in ours:
                if operation.after:
                    self._count(operation.name)
            return found

        patch.setattr(owner, attribute, called)

    def _count(self, name: str) -> None:
        self.calls[name] += 1
        if self._armed is not None and self._armed[:2] == (name, self.calls[name]):
            error = FAULTS[self._armed[2]]()
            self.raised.append(error)
            raise error


def file_operations() -> list[Operation]:
    """Return what is done with files, by the system's and by Python's names."""
    before = [
        *(Operation(f"os.{name}", os, name) for name in ("fsync", "replace", "link", "utime")),
        *(
            Operation(f"Path.{name}", Path, name)
            for name in ("open", "unlink", "mkdir", "rmdir", "read_bytes", "glob", "rglob", "stat")
        ),
    ]
    done = [
        Operation(f"{operation.name}, done", operation.owner, operation.attribute, after=True)
        for operation in before
        if operation.name in ("os.fsync", "os.replace", "os.link", "Path.unlink", "Path.mkdir")
    ]
    return before + done
