"""Shapes of the sketchbook's world: every thing is a list of polygons and strokes in unit coordinates.

The unit square is [-1, 1] x [-1, 1], y points down. A shape knows its role, and a style (styles.py)
decides from the role how it is painted, so one scene can be drawn as a plain picture, a pencil drawing or
a blueprint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """One polygon (`width` 0) or stroke (`width` > 0, in unit coordinates).

    Roles: `back` is the place, `body` the object itself (what a pattern covers), `detail` its small parts,
    `accessory` what it carries.
    """

    points: np.ndarray  # N 2
    colour: Colour
    role: str = "body"
    width: float = 0.0

    def moved(self, matrix: np.ndarray, offset: np.ndarray) -> Shape:
        """Return the shape under the affine map `p @ matrix.T + offset`."""
        return replace(self, points=self.points @ matrix.T + offset)


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """Return the corner points as an array N 2."""
    return np.array(points, dtype=np.float64)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return the corners of an axis-aligned rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def ellipse(
    x: float, y: float, rx: float, ry: float, *, start: float = 0.0, stop: float = 360.0, count: int = 28
) -> np.ndarray:
    """Return points on an ellipse's arc, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, count, endpoint=stop - start < 360))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def round_box(left: float, top: float, right: float, bottom: float, radius: float) -> np.ndarray:
    """Return a rectangle with rounded corners."""
    corners = [
        ellipse(right - radius, bottom - radius, radius, radius, start=0, stop=90, count=6),
        ellipse(left + radius, bottom - radius, radius, radius, start=90, stop=180, count=6),
        ellipse(left + radius, top + radius, radius, radius, start=180, stop=270, count=6),
        ellipse(right - radius, top + radius, radius, radius, start=270, stop=360, count=6),
    ]
    return np.concatenate([corners[0], corners[1], corners[2], corners[3]])


def placement(rng: np.random.Generator, *, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a random size, tilt, side and position of the object: an affine map of the unit square."""
    scale = rng.uniform(0.80, 1.0)
    tilt = math.radians(rng.uniform(-5, 5))
    mirror = -1.0 if flip and rng.random() < 0.5 else 1.0
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    matrix = turn @ np.diag([scale * mirror * rng.uniform(0.94, 1.06), scale])
    return matrix, np.array([rng.uniform(-0.10, 0.10), rng.uniform(-0.04, 0.08) + (1 - scale) * 0.4])


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour darkened (factor < 1) or lightened (factor > 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(255 - (255 - c) / factor) for c in colour)  # type: ignore[return-value]
