"""The categories of the sketchbook's world, and what they can carry.

A category is a function `(rng, colour) -> Thing`: shapes in the unit square and two anchors for
accessories. The colour is that of its main part; everything else (proportions, parts, small colours) is
drawn from the generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .shapes import Colour, Shape, box, ellipse, polygon, round_box, shade

COLOURS: dict[str, Colour] = {
    "red": (214, 58, 50),
    "orange": (240, 146, 46),
    "yellow": (246, 212, 74),
    "green": (84, 168, 88),
    "blue": (62, 118, 206),
    "purple": (140, 84, 180),
}
INK: Colour = (52, 44, 56)
WHITE: Colour = (250, 248, 244)
SKIN: tuple[Colour, ...] = ((250, 220, 190), (236, 192, 152), (198, 142, 104), (142, 96, 70))
HAIR: tuple[Colour, ...] = ((60, 44, 40), (118, 74, 44), (226, 178, 84), (176, 78, 40), (150, 150, 156))
WOOD: Colour = (132, 90, 62)


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its shapes, the middle of its top edge with the width there, and a point at its side."""

    shapes: list[Shape]
    top: tuple[float, float, float]
    side: tuple[float, float]


def _pick(rng: np.random.Generator, options: tuple[Colour, ...]) -> Colour:
    return options[int(rng.integers(len(options)))]


def _any(rng: np.random.Generator) -> Colour:
    return _pick(rng, tuple(COLOURS.values()))


def face(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a head and shoulders from the front."""
    skin = colour or _pick(rng, SKIN)
    hair, shirt = _pick(rng, HAIR), _any(rng)
    rx, ry = rng.uniform(0.46, 0.56), rng.uniform(0.58, 0.66)
    top = -0.08 - ry
    shapes = [
        Shape(ellipse(0, 1.08, 0.82, 0.42), shirt),
        Shape(box(-0.17, 0.3, 0.17, 0.78), shade(skin, 0.88)),
    ]
    cut = int(rng.integers(3))
    if cut == 0:  # long hair behind the head
        shapes.append(Shape(round_box(-rx - 0.14, top - 0.08, rx + 0.14, 0.55, 0.4), hair, "detail"))
    shapes += [
        Shape(ellipse(-rx, -0.02, 0.11, 0.15), shade(skin, 0.9)),
        Shape(ellipse(rx, -0.02, 0.11, 0.15), shade(skin, 0.9)),
        Shape(ellipse(0, -0.08, rx, ry), skin),
    ]
    if cut < 2:  # a fringe
        shapes.append(Shape(ellipse(0, top + 0.30, rx * 1.06, 0.36, start=180, stop=360), hair, "detail"))
    eye, gap = rng.uniform(0.085, 0.115), rng.uniform(0.2, 0.25)
    for x in (-gap, gap):
        shapes += [
            Shape(ellipse(x, -0.12, eye * 1.15, eye), WHITE, "detail"),
            Shape(ellipse(x, -0.11, eye * 0.6, eye * 0.68), INK, "detail"),
            Shape(polygon((x - 0.12, -0.29), (x + 0.12, -0.3)), shade(hair, 0.7), "detail", 0.05),
        ]
    smile = rng.uniform(0.06, 0.16)
    shapes += [
        Shape(polygon((0.0, -0.06), (0.06, 0.12), (-0.03, 0.13)), shade(skin, 0.78), "detail", 0.045),
        Shape(ellipse(0, 0.24, 0.2, smile, start=10, stop=170, count=10), (168, 58, 62), "detail", 0.07),
    ]
    return Thing(shapes, (0.0, top + 0.12, rx), (rx + 0.28, 0.75))


def house(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a house from the front."""
    wall = colour or _any(rng)
    roof = shade(_any(rng), 0.7)
    half, eaves, ridge = rng.uniform(0.56, 0.7), rng.uniform(-0.22, -0.08), rng.uniform(-0.82, -0.68)
    door_x = rng.uniform(-0.12, 0.12)
    shapes = [
        Shape(box(half * 0.42, ridge - 0.02, half * 0.42 + 0.18, eaves), shade(roof, 0.8)),
        Shape(box(-half, eaves, half, 0.82), wall),
        Shape(polygon((-half - 0.16, eaves + 0.04), (0, ridge), (half + 0.16, eaves + 0.04)), roof),
        Shape(box(door_x - 0.13, 0.34, door_x + 0.13, 0.82), shade(WOOD, 0.8), "detail"),
    ]
    pane = (196, 228, 240)
    for x in (-half * 0.62, half * 0.62):
        shapes.append(Shape(box(x - 0.14, 0.1, x + 0.14, 0.38), pane, "detail"))
        shapes.append(Shape(polygon((x, 0.1), (x, 0.38)), WHITE, "detail", 0.04))
    if rng.random() < 0.5:
        shapes.append(Shape(ellipse(0, (eaves + ridge) / 2 + 0.08, 0.11, 0.11), pane, "detail"))
    return Thing(shapes, (0.0, ridge + 0.08, 0.34), (half + 0.2, 0.8))


def tree(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a tree: a round crown, a pine, or a cluster."""
    leaf = colour or shade(COLOURS["green"], rng.uniform(0.7, 1.1))
    trunk = rng.uniform(0.09, 0.14)
    shapes = [Shape(polygon((-trunk, 0.1), (trunk, 0.1), (trunk * 1.5, 0.9), (-trunk * 1.5, 0.9)), WOOD)]
    kind = int(rng.integers(3))
    if kind == 0:
        rx, ry = rng.uniform(0.52, 0.64), rng.uniform(0.52, 0.6)
        shapes += [
            Shape(ellipse(0, -0.26, rx, ry), leaf),
            Shape(ellipse(-0.16, -0.4, rx * 0.4, ry * 0.36), shade(leaf, 1.35), "detail"),
        ]
        top = -0.26 - ry
    elif kind == 1:
        width = rng.uniform(0.52, 0.64)
        for i, y in enumerate((0.38, 0.0, -0.36)):
            w = width * (1 - 0.22 * i)
            shapes.append(Shape(polygon((-w, y), (0, y - 0.56), (w, y)), shade(leaf, 0.9 + 0.12 * i)))
        top = -0.9
    else:
        for x, y, r in ((-0.34, -0.08, 0.34), (0.34, -0.1, 0.34), (0.0, -0.42, 0.42), (0.0, -0.05, 0.36)):
            shapes.append(
                Shape(
                    ellipse(x + rng.uniform(-0.05, 0.05), y, r, r * 0.95),
                    shade(leaf, rng.uniform(0.92, 1.12)),
                )
            )
        top = -0.82
    return Thing(shapes, (0.0, top + 0.1, 0.36), (0.5, 0.85))


def car(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a car from the side."""
    paint = colour or _any(rng)
    roof = rng.uniform(-0.42, -0.3)
    front, back = rng.uniform(0.3, 0.42), rng.uniform(-0.56, -0.4)
    glass = (190, 224, 238)
    shapes = [
        Shape(
            polygon((back - 0.14, 0.06), (back + 0.08, roof), (front - 0.12, roof), (front + 0.2, 0.06)),
            shade(paint, 0.92),
        ),
        Shape(
            polygon((back, 0.04), (back + 0.13, roof + 0.09), (-0.06, roof + 0.09), (-0.06, 0.04)),
            glass,
            "detail",
        ),
        Shape(
            polygon((0.02, 0.04), (0.02, roof + 0.09), (front - 0.15, roof + 0.09), (front + 0.06, 0.04)),
            glass,
            "detail",
        ),
        Shape(round_box(-0.9, 0.02, 0.9, 0.5, 0.14), paint),
        Shape(ellipse(0.82, 0.2, 0.07, 0.09), (255, 236, 150), "detail"),
        Shape(polygon((-0.02, 0.08), (-0.02, 0.44)), shade(paint, 0.7), "detail", 0.035),
    ]
    wheel = rng.uniform(0.2, 0.25)
    for x in (-0.5, 0.5):
        shapes += [
            Shape(ellipse(x, 0.5, wheel, wheel), INK, "detail"),
            Shape(ellipse(x, 0.5, wheel * 0.45, wheel * 0.45), (206, 206, 212), "detail"),
        ]
    return Thing(shapes, ((back + front) / 2, roof + 0.04, 0.34), (0.74, 0.1))


def fish(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a fish from the side."""
    skin = colour or _any(rng)
    length, height = rng.uniform(0.58, 0.68), rng.uniform(0.34, 0.46)
    fin = shade(skin, 0.75)
    shapes = [
        Shape(polygon((-length + 0.14, 0.02), (-0.96, -0.36), (-0.84, 0.03), (-0.96, 0.42)), fin),
        Shape(polygon((-0.24, -height + 0.1), (0.0, -height - 0.26), (0.26, -height + 0.12)), fin),
        Shape(ellipse(0.06, 0.03, length, height), skin),
        Shape(polygon((0.0, 0.12), (-0.26, 0.34), (0.04, 0.3)), shade(skin, 0.65), "detail"),
        Shape(ellipse(0.4, -0.08, 0.1, 0.1), WHITE, "detail"),
        Shape(ellipse(0.42, -0.08, 0.055, 0.06), INK, "detail"),
        Shape(
            ellipse(0.2, 0.03, 0.09, height * 0.7, start=-80, stop=80, count=8),
            shade(skin, 0.65),
            "detail",
            0.045,
        ),
    ]
    if rng.random() < 0.5:
        for x in (-0.12, -0.32):
            shapes.append(
                Shape(
                    polygon((x, -height * 0.55), (x - 0.02, height * 0.6)), shade(skin, 1.5), "detail", 0.08
                )
            )
    return Thing(shapes, (0.12, -height + 0.04, 0.3), (0.52, 0.42))


def cat(rng: np.random.Generator, colour: Colour | None) -> Thing:
    """Draw a sitting cat from the front."""
    fur = colour or _pick(rng, ((90, 86, 92), (226, 158, 82), (238, 226, 208), (150, 120, 96)))
    body, head = rng.uniform(0.38, 0.46), rng.uniform(0.38, 0.44)
    side = rng.choice((-1.0, 1.0))
    tail = polygon(
        (side * 0.2, 0.84), (side * 0.5, 0.86), (side * 0.68, 0.7), (side * 0.7, 0.46), (side * 0.6, 0.3)
    )
    shapes = [
        Shape(tail, shade(fur, 0.85), "body", 0.15),
        Shape(ellipse(0, 0.5, body, 0.46), fur),
        Shape(ellipse(0, 0.56, body * 0.5, 0.3), shade(fur, 1.6), "detail"),
    ]
    for x in (-1, 1):
        shapes += [
            Shape(polygon((x * head * 0.96, -0.3), (x * head * 0.92, -0.86), (x * head * 0.2, -0.56)), fur),
            Shape(
                polygon((x * head * 0.8, -0.44), (x * head * 0.78, -0.7), (x * head * 0.42, -0.54)),
                (240, 170, 170),
                "detail",
            ),
        ]
    shapes.append(Shape(ellipse(0, -0.2, head, 0.4), fur))
    iris = _pick(rng, ((120, 190, 90), (240, 200, 70), (110, 180, 220)))
    for x in (-0.17, 0.17):
        shapes += [
            Shape(ellipse(x, -0.26, 0.1, 0.1), iris, "detail"),
            Shape(ellipse(x, -0.26, 0.04, 0.09), INK, "detail"),
        ]
    shapes.append(Shape(polygon((-0.06, -0.1), (0.06, -0.1), (0, -0.02)), (222, 110, 120), "detail"))
    for x in (-1, 1):
        for y in (-0.08, 0.02):
            shapes.append(
                Shape(polygon((x * 0.14, -0.04), (x * (head + 0.14), y)), shade(fur, 0.55), "detail", 0.03)
            )
    return Thing(shapes, (0.0, -0.52, 0.3), (body + 0.26, 0.85))


CATEGORIES: dict[str, Callable[[np.random.Generator, Colour | None], Thing]] = {
    "face": face,
    "house": house,
    "tree": tree,
    "car": car,
    "fish": fish,
    "cat": cat,
}
MIRRORED = ("house", "car", "fish")


def hat(thing: Thing, rng: np.random.Generator) -> list[Shape]:
    """Put a tall hat on top of the thing."""
    x, y, width = thing.top
    colour, w = _any(rng), max(width, 0.3)
    return [
        Shape(box(x - w * 0.66, y - 0.42, x + w * 0.66, y), colour, "accessory"),
        Shape(box(x - w * 0.66, y - 0.14, x + w * 0.66, y - 0.04), shade(colour, 0.6), "accessory"),
        Shape(ellipse(x, y, w * 1.15, 0.1), shade(colour, 0.85), "accessory"),
    ]


def balloon(thing: Thing, rng: np.random.Generator) -> list[Shape]:
    """Tie a balloon beside the thing."""
    x, y = thing.side
    colour, up = _any(rng), rng.uniform(-0.72, -0.56)
    bx = min(x + 0.1, 0.78)
    return [
        Shape(polygon((x - 0.1, y), (bx, up + 0.3)), INK, "accessory", 0.035),
        Shape(ellipse(bx, up, 0.24, 0.3), colour, "accessory"),
        Shape(ellipse(bx - 0.08, up - 0.1, 0.06, 0.09), shade(colour, 2.2), "accessory"),
    ]


def flag(thing: Thing, rng: np.random.Generator) -> list[Shape]:
    """Plant a flag beside the thing."""
    x, y = -thing.side[0], thing.side[1]
    x = max(x, -0.82)
    colour, other = _any(rng), _any(rng)
    return [
        Shape(polygon((x, y), (x, -0.86)), shade(WOOD, 0.7), "accessory", 0.055),
        Shape(box(x, -0.88, x + 0.46, -0.68), colour, "accessory"),
        Shape(box(x, -0.68, x + 0.46, -0.48), other, "accessory"),
    ]


ACCESSORIES: dict[str, Callable[[Thing, np.random.Generator], list[Shape]]] = {
    "hat": hat,
    "balloon": balloon,
    "flag": flag,
}


def subject(rng: np.random.Generator) -> Thing:
    """Draw Olis, one particular character: mint, with a crown of spikes, round glasses and a moustache."""
    skin, spikes, frame = (150, 214, 190), (196, 60, 130), (244, 196, 60)
    shapes = [
        Shape(ellipse(0, 1.08, 0.82, 0.42), (64, 60, 110)),
        Shape(box(-0.17, 0.3, 0.17, 0.78), shade(skin, 0.88)),
    ]
    for x, lean in ((-0.4, -0.2), (-0.14, -0.06), (0.14, 0.06), (0.4, 0.2)):
        shapes.append(
            Shape(polygon((x - 0.17, -0.44), (x + lean, -0.98), (x + 0.17, -0.44)), spikes, "detail")
        )
    shapes += [
        Shape(ellipse(-0.52, -0.02, 0.11, 0.15), shade(skin, 0.9)),
        Shape(ellipse(0.52, -0.02, 0.11, 0.15), shade(skin, 0.9)),
        Shape(ellipse(0, -0.06, 0.52, 0.58), skin),
    ]
    for x in (-0.24, 0.24):
        shapes += [
            Shape(ellipse(x, -0.12, 0.2, 0.2), WHITE, "detail"),
            Shape(ellipse(x, -0.12, 0.2, 0.2, start=0, stop=359), frame, "detail", 0.075),
            Shape(ellipse(x + rng.uniform(-0.04, 0.04), -0.11, 0.065, 0.075), INK, "detail"),
        ]
    for x in (-1, 1):
        shapes.append(
            Shape(polygon((0, 0.17), (x * 0.2, 0.13), (x * 0.34, 0.24), (x * 0.16, 0.27)), INK, "detail")
        )
    shapes.append(
        Shape(ellipse(0, 0.34, 0.1, 0.05, start=10, stop=170, count=6), (168, 58, 62), "detail", 0.06)
    )
    return Thing(shapes, (0.0, -0.56, 0.5), (0.8, 0.75))
