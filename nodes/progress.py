"""What a node shows while it runs, a bar and a line of text, and whether the user has cancelled."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_api.v0_0_2 import io


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


def say(node: str | None, text: str) -> None:
    """Show a line of text on a node."""
    from server import PromptServer  # a server exists only where the host runs as one

    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        server.send_progress_text(text, node)


def duration(seconds: float) -> str:
    """Return a time in words."""
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 90 else f"{seconds // 60} min {seconds % 60:02} s"
