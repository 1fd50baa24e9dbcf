"""Where the nodes of a workflow stand: in groups, the groups in stacks from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

PADDING, HEADING = 20, 90  # of a frame; a node's title is 30 above its position
BETWEEN_NODES, BETWEEN_COLUMNS, BETWEEN_GROUPS = 80, 60, 70


class Placed(Protocol):
    """A node with a size and a place."""

    position: tuple[int, int]
    width: int
    height: int


@dataclass
class Group:
    """A titled frame around columns of nodes; without a title there is no frame."""

    title: str
    columns: list[list[Placed]]
    colour: str = "#3f789e"


def frame(number: int, group: Group) -> dict[str, Any]:
    """Return the frame around a group whose nodes have been placed."""
    nodes = [node for column in group.columns for node in column]
    left = min(node.position[0] for node in nodes) - PADDING
    top = min(node.position[1] for node in nodes) - HEADING
    right = max(node.position[0] + node.width for node in nodes) + PADDING
    bottom = max(node.position[1] + node.height for node in nodes) + PADDING
    return {
        "id": number,
        "title": group.title,
        "bounding": [left, top, right - left, bottom - top],
        "color": group.colour,
        "font_size": 24,
        "flags": {},
    }


def place(stacks: list[list[Group]]) -> None:
    """Place groups in stacks from left to right, each stack from top to bottom."""
    x = 0
    for stack in stacks:
        y = width = 0
        for group in stack:
            left, bottom = x, y
            for column in group.columns:
                top = y
                for node in column:
                    node.position = (left, top)
                    top += node.height + BETWEEN_NODES
                bottom = max(bottom, top)
                left += max(node.width for node in column) + BETWEEN_COLUMNS
            width = max(width, left - x)
            y = bottom + BETWEEN_GROUPS
        x += width + BETWEEN_COLUMNS
