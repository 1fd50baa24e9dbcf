"""A host that is closed or terminated: the training that runs is kept first."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

log = logging.getLogger("domaingallery")

#: How long a host that closes waits for a training to be kept: for one step, and a file.
SECONDS = 30.0


def close_when_terminated() -> None:
    """Let a termination signal close the host as Ctrl-C does, unless something handles it already."""
    usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if usual and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def kept_at_exit() -> Iterator[None]:
    """Return a context that is interrupted, as by a cancel, and waited for when the host closes."""
    done = threading.Event()

    def stop() -> None:
        if not done.is_set():
            log.warning("The host closes; the training is kept first.")
            comfy.model_management.interrupt_current_processing(True)
            done.wait(SECONDS)

    atexit.register(stop)
    try:
        yield
    finally:
        done.set()
        atexit.unregister(stop)
