"""What a node shows while it runs, a bar and a line of text, and whether the user has cancelled."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.v0_0_2 import io

#: How many warnings a node shows at once, the latest.
MOST_WARNINGS = 4


def check_interrupt() -> None:
    """Raise the host's interrupt if the user has cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def node_id(node: type[io.ComfyNode]) -> str | None:
    """Return the id of the node that runs; None where it was called without a graph."""
    return node.hidden.unique_id if node.hidden else None


class Progress:
    """Show a bar and a line of text on a node."""

    def __init__(self, node: str | None, total: int) -> None:
        self.node = node
        self.total = total
        self.bar = comfy.utils.ProgressBar(total)
        self._shown = 0.0

    def update(self, done: int, text: str, preview: Any = None) -> None:
        """Show `done` of the total, and the text at most twice a second. Raises the host's interrupt."""
        check_interrupt()
        self.bar.update_absolute(done, self.total, preview)
        now = time.perf_counter()
        if done >= self.total or now - self._shown >= 0.5:
            self._shown = now
            self.say(text)

    def say(self, text: str) -> None:
        """Show a line of text on the node."""
        say(self.node, text)


class Warnings(logging.Handler):
    """Show on a node what is warned of while it runs, and keep it there under what it says later."""

    def __init__(self, node: str | None) -> None:
        super().__init__(logging.WARNING)
        self.node = node
        self.said = ""
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a warning in. That it cannot be shown ends nothing."""
        try:
            text = record.getMessage()
            if text not in self.texts:
                self.texts.append(text)
                say(self.node, self.said)
        except Exception:
            self.handleError(record)

    def under(self, text: str) -> str:
        """Return a text with the latest warnings under it."""
        left = len(self.texts) - MOST_WARNINGS
        more = [f"and {left} more warnings before, in the log"] if left > 0 else []
        return "\n".join(filter(None, (text, *self.texts[-MOST_WARNINGS:], *more)))


_warnings: ContextVar[Warnings | None] = ContextVar("warnings of the node that runs", default=None)


@contextmanager
def showing_warnings(node: str | None) -> Iterator[Warnings]:
    """Return a context in which whatever the pack warns of in its log is shown on the node, too."""
    handler, log = Warnings(node), logging.getLogger("domaingallery")
    token = _warnings.set(handler)
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        _warnings.reset(token)


def warned() -> list[str]:
    """Return what was warned of on the node that runs."""
    handler = _warnings.get()
    return list(handler.texts) if handler is not None else []


def say(node: str | None, text: str) -> None:
    """Show a line of text on a node, with what was warned of under it."""
    handler = _warnings.get()
    if handler is not None:
        handler.said = text
        text = handler.under(text)
    send(node, text)


def send(node: str | None, text: str) -> None:
    """Send a text to a node in the browser."""
    from server import PromptServer  # a server exists only where the host runs as one

    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        server.send_progress_text(text, node)


def duration(seconds: float) -> str:
    """Return a time in words."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 90 else f"{seconds // 60} min {seconds % 60:02} s"
