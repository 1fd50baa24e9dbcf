"""Stages of a long job in a terminal: one bar each, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

WIDTH = 24
QUIET = 15.0  # seconds between lines where nothing can be drawn over


class Terminal:
    """Show stages one after the other, and remember how long each took.

    A stream that is no terminal gets a line when a stage ends, and now and then while it lasts.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._live = self.stream.isatty()

    def say(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()

    @contextmanager
    def stage(self, name: str, key: str = "") -> Iterator[Bar]:
        """Show a bar while the block runs; its time counts for `key`."""
        bar = Bar(self, name)
        try:
            yield bar
        except BaseException:
            bar.end("stopped")
            raise
        finally:
            self.seconds[key or name] += bar.elapsed()
        bar.end()


class Bar:
    """The bar of one stage; call it with the fraction that is done."""

    def __init__(self, terminal: Terminal, name: str) -> None:
        self.name = name
        self._terminal = terminal
        self._started = self._said = time.monotonic()
        self._drawn = 0.0
        self._ended = False
        self(0.0)

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def __call__(self, fraction: float) -> None:
        fraction, now = min(max(fraction, 0.0), 1.0), time.monotonic()
        left = self.elapsed() * (1 - fraction) / fraction if fraction > 0.01 else None
        text = f"{fraction:4.0%}" + ("" if left is None else f"  {clock(left)} left")
        if self._terminal._live:
            if now - self._drawn >= 0.1:
                self._drawn = now
                filled = round(WIDTH * fraction)
                self._draw(f"  {self.name:<34} [{'#' * filled}{'.' * (WIDTH - filled)}] {text}")
        elif now - self._said >= QUIET:
            self._said = now
            self._terminal.say(f"  {self.name:<34} {text}")

    def end(self, how: str = "done") -> None:
        """Replace the bar by a line that says how long the stage took."""
        if self._ended:
            return
        self._ended = True
        line = f"  {self.name:<34} {how} in {clock(self.elapsed())}"
        if self._terminal._live:
            self._draw(line)
            self._terminal.stream.write("\n")
            self._terminal.stream.flush()
        else:
            self._terminal.say(line)

    def _draw(self, line: str) -> None:
        self._terminal.stream.write("\r\x1b[K" + line)
        self._terminal.stream.flush()


def clock(seconds: float) -> str:
    """Return a length of time as people say it, such as "8 s" or "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
