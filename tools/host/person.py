"""Use the host's page as a person does, by mouse and keyboard, and count what that takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Where a widget is on the page, as the canvas has it; nothing before it was drawn.
WIDGET = """([title, name]) => {
    const canvas = window.app.canvas, { scale, offset } = canvas.ds
    const node = canvas.graph.nodes.find(node => node.title === title)
    const widget = node.widgets.find(widget => (widget.label || widget.name) === name)
    if (!widget.last_y) return null
    const { left, top } = canvas.canvas.getBoundingClientRect()
    const x = node.pos[0] + node.size[0] * 0.6, y = node.pos[1] + widget.last_y + 10
    return [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
}"""
LINKS = "() => window.app.graph.links.size ?? Object.keys(window.app.graph.links).length"
REST = (800, 120)  # where a hand passes, above what is on the canvas
PAUSE = 0.7  # in seconds, for the page to show what was done


@dataclass
class Person:
    """Someone at the host's page.

    Attributes:
        pictures: the folder for screenshots.
        clicks, choices, words: what was done so far: all clicks; values chosen from a list, and typed.
    """

    page: Any
    pictures: Path
    clicks: int = 0
    choices: int = 0
    words: int = 0
    looks: list[Path] = field(default_factory=list)

    def click(self, where: Any) -> None:
        """Click on a part of the page, or on a place of it."""
        if isinstance(where, list):
            self.page.mouse.click(*where)
        else:
            where.click()
        self.clicks += 1
        time.sleep(PAUSE)

    def place(self, node: str, widget: str) -> list[float]:
        """Return where a node's widget is on the page, once it is there."""
        for step in range(2):  # a hand that moves makes the page draw what is not drawn yet
            self.page.mouse.move(*REST, steps=1 + step)
        return self.page.wait_for_function(WIDGET, arg=[node, widget]).json_value()

    def write(self, text: str, *, enter: bool = False) -> None:
        self.page.keyboard.type(text, delay=20)
        if enter:
            self.page.keyboard.press("Enter")
        time.sleep(PAUSE)

    def choose(self, node: str, widget: str, value: str) -> None:
        """Choose a value of a node's widget from its list."""
        self.click(self.place(node, widget))
        self.click(self.page.get_by_text(value, exact=True).last)
        self.choices += 1

    def fill(self, node: str, widget: str, text: str) -> None:
        """Type a text into a node's widget, in place of the one that is there."""
        self.click(self.place(node, widget))
        self.page.wait_for_selector(".graphdialog input:focus", timeout=20_000)
        self.write(text, enter=True)
        self.words += 1

    def look(self, name: str) -> None:
        """Keep a picture of the page."""
        self.looks.append(self.pictures / f"{len(self.looks) + 1} {name}.png")
        self.page.screenshot(path=self.looks[-1])

    def links(self) -> int:
        """Return how many links the graph has that is open."""
        return self.page.evaluate(LINKS)
