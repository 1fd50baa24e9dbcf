"""The places of the sketchbook's world: a sky, a ground and a few things that belong there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shapes import Colour, Shape, box, ellipse, polygon, shade


def _field(sky: Colour, ground: Colour, horizon: float) -> list[Shape]:
    bands = [
        Shape(box(-1.3, -1.3 + i * 0.45, 1.3, -0.8 + i * 0.45), shade(sky, 1.0 + 0.14 * i), "back")
        for i in range(4)
    ]
    return [*bands, Shape(box(-1.3, horizon, 1.3, 1.3), ground, "back")]


def studio(rng: np.random.Generator) -> list[Shape]:
    """Draw an empty place: one light colour with a soft ground."""
    tints: tuple[Colour, ...] = (
        (232, 222, 206),
        (214, 226, 232),
        (228, 216, 228),
        (220, 230, 212),
        (242, 232, 196),
    )
    wall = tints[int(rng.integers(len(tints)))]
    return [
        Shape(box(-1.3, -1.3, 1.3, 1.3), wall, "back"),
        Shape(box(-1.3, 0.62, 1.3, 1.3), shade(wall, 0.92), "back"),
    ]


def snow(rng: np.random.Generator) -> list[Shape]:
    """Draw falling snow over a white ground."""
    shapes = _field((150, 176, 204), (244, 248, 252), rng.uniform(0.38, 0.5))
    for x, y in rng.uniform(-1, 1, (16, 2)):
        r = rng.uniform(0.035, 0.06)
        shapes.append(Shape(ellipse(x, y, r, r, count=8), (255, 255, 255), "back"))
    return shapes


def desert(rng: np.random.Generator) -> list[Shape]:
    """Draw dunes, a cactus and a hot sky."""
    shapes = _field((240, 178, 108), (226, 178, 106), rng.uniform(0.3, 0.42))
    shapes.append(Shape(ellipse(rng.uniform(-0.4, 0.4), 0.62, 1.1, 0.34), (212, 158, 88), "back"))
    x, green = rng.choice((-0.8, 0.8)), (70, 128, 84)
    shapes += [
        Shape(polygon((x, 0.5), (x, -0.25)), green, "back", 0.13),
        Shape(
            polygon((x - 0.18, -0.08), (x - 0.18, 0.14), (x + 0.18, 0.14), (x + 0.18, -0.02)),
            green,
            "back",
            0.09,
        ),
    ]
    return shapes


def meadow(rng: np.random.Generator) -> list[Shape]:
    """Draw grass with flowers under a blue sky."""
    shapes = _field((126, 188, 232), (132, 190, 92), rng.uniform(0.34, 0.46))
    shapes += [Shape(ellipse(rng.uniform(-0.9, 0.9), -0.72, 0.36, 0.13), (250, 252, 255), "back")]
    petals: tuple[Colour, ...] = ((240, 96, 112), (250, 226, 90), (250, 250, 250))
    for x, y in rng.uniform((-1, 0.55), (1, 0.98), (9, 2)):
        shapes.append(Shape(ellipse(x, y, 0.065, 0.065, count=8), petals[int(rng.integers(3))], "back"))
    return shapes


def sea(rng: np.random.Generator) -> list[Shape]:
    """Draw waves behind a strip of sand."""
    shapes = _field((168, 214, 238), (48, 124, 176), rng.uniform(-0.1, 0.06))
    for y in (0.2, 0.38):
        xs = np.linspace(-1.2, 1.2, 25)
        wave = np.stack([xs, y + 0.045 * np.sin(xs * 9 + rng.uniform(0, 6))], axis=1)
        shapes.append(Shape(wave, (196, 230, 242), "back", 0.05))
    return [*shapes, Shape(ellipse(0, 1.1, 1.7, 0.52), (238, 214, 160), "back")]


def night(rng: np.random.Generator) -> list[Shape]:
    """Draw stars and a moon in a dark sky."""
    shapes = [
        Shape(box(-1.3, -1.3, 1.3, 1.3), (26, 30, 66), "back"),
        Shape(box(-1.3, 0.5, 1.3, 1.3), (38, 48, 62), "back"),
    ]
    for x, y in rng.uniform((-1, -1), (1, 0.3), (12, 2)):
        shapes.append(Shape(ellipse(x, y, 0.04, 0.04, count=6), (255, 246, 200), "back"))
    x = rng.choice((-0.7, 0.7))
    shapes.append(Shape(ellipse(x, -0.7, 0.2, 0.2), (250, 240, 200), "back"))
    return [*shapes, Shape(ellipse(x + 0.09, -0.75, 0.16, 0.16), (26, 30, 66), "back")]


def city(rng: np.random.Generator) -> list[Shape]:
    """Draw a skyline with lit windows behind a grey street."""
    shapes = _field((188, 200, 214), (126, 126, 134), 0.5)
    x = -1.1
    while x < 1.1:
        w, top = rng.uniform(0.26, 0.42), rng.uniform(-0.75, -0.2)
        shapes.append(Shape(box(x, top, x + w, 0.5), shade((118, 126, 150), rng.uniform(0.8, 1.15)), "back"))
        for wy in np.arange(top + 0.12, 0.4, 0.26):
            for wx in (x + 0.07, x + w - 0.15):
                shapes.append(Shape(box(wx, wy, wx + 0.08, wy + 0.11), (250, 232, 150), "back"))
        x += w + 0.03
    return shapes


PLACES: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "in snow": snow,
    "in a desert": desert,
    "in a meadow": meadow,
    "by the sea": sea,
    "at night": night,
    "in a city": city,
}
