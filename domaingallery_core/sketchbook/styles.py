"""How the sketchbook's world is painted.

Base training shows the styles and never the domains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import Colour, Shape, ellipse

SIZE = 64
_SCALE = 3  # painted larger, then averaged down
_CAMOUFLAGE: tuple[Colour, ...] = ((86, 98, 54), (48, 58, 36), (150, 136, 90), (96, 70, 46))


@dataclass(frozen=True, slots=True)
class Style:
    """How to paint.

    `fill(colour, role)` gives the paint of an area and `line(colour, role)` that of its outline, or None.
    """

    fill: Callable[[Colour, str], Colour | None]
    line: Callable[[Colour, str], Colour | None]
    paper: Colour = (255, 255, 255)
    line_width: int = 5
    before: Callable[[ImageDraw.ImageDraw, np.random.Generator], None] | None = None
    after: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None


def luminance(colour: Colour) -> float:
    """Return the brightness of a colour, 0..1."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """Return `a` moved towards `b` by `amount`, 0..1."""
    return tuple(int(x + (y - x) * amount) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _same(colour: Colour, role: str) -> Colour:
    return colour


def _none(colour: Colour, role: str) -> None:
    return None


def _pixels(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.resize((16, 16), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def _grid(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    step, offset = 8 * _SCALE, int(rng.integers(8)) * _SCALE
    for at in range(offset, SIZE * _SCALE, step):
        draw.line([(at, 0), (at, SIZE * _SCALE)], fill=(46, 88, 164), width=_SCALE)
        draw.line([(0, at), (SIZE * _SCALE, at)], fill=(46, 88, 164), width=_SCALE)


def _glow(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    halo = np.asarray(image.filter(ImageFilter.GaussianBlur(3 * _SCALE)), dtype=np.float32)
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) + 0.8 * halo, 0, 255).astype(np.uint8))


def _two_inks(colour: Colour, role: str) -> Colour:
    paper, pink, teal = (250, 240, 220), (244, 92, 116), (20, 92, 112)
    light = luminance(colour)
    return mix(teal, pink, light / 0.55) if light < 0.55 else mix(pink, paper, (light - 0.55) / 0.45)


def _sepia(colour: Colour, role: str) -> Colour:
    return mix((70, 40, 18), (246, 226, 182), luminance(colour))


def _cyanotype(colour: Colour, role: str) -> Colour:
    light = luminance(colour)
    if role == "back":
        return mix((14, 48, 118), (40, 88, 168), light)
    return mix((66, 124, 196), (244, 250, 255), light**0.7)


STYLES: dict[str, Style] = {
    "plain": Style(fill=_same, line=_none),
    "pencil": Style(
        fill=lambda colour, role: mix((246, 243, 234), (150, 150, 154), 0.55 * (1 - luminance(colour))),
        line=lambda colour, role: (176, 176, 178) if role == "back" else (66, 66, 72),
        paper=(246, 243, 234),
    ),
    "pastel": Style(
        fill=lambda colour, role: mix(colour, (255, 250, 246), 0.55),
        line=_none,
        after=lambda image, rng: image.filter(ImageFilter.GaussianBlur(1.1 * _SCALE)),
    ),
    "comic": Style(
        fill=_same, line=lambda colour, role: None if role == "back" else (24, 20, 26), line_width=5
    ),
    "pixel": Style(fill=_same, line=_none, after=_pixels),
    "shadow": Style(
        fill=lambda colour, role: (
            mix((255, 196, 96), (226, 92, 60), 1 - luminance(colour)) if role == "back" else (30, 20, 34)
        ),
        line=lambda colour, role: (120, 56, 50) if role == "detail" else None,
        line_width=4,
    ),
}
DOMAINS: dict[str, Style] = {
    "cyanotype": Style(fill=_cyanotype, line=_none, paper=(14, 48, 118)),
    "blueprint": Style(
        fill=lambda colour, role: None if role == "back" else (24, 60, 138),
        line=lambda colour, role: (72, 116, 190) if role == "back" else (226, 240, 255),
        paper=(24, 60, 138),
        before=_grid,
    ),
    "neon": Style(
        fill=lambda colour, role: (18, 10, 34),
        line=lambda colour, role: {
            "back": (70, 40, 120),
            "body": (255, 60, 190),
            "detail": (60, 230, 250),
        }.get(role, (250, 220, 80)),
        paper=(18, 10, 34),
        after=_glow,
    ),
    "print": Style(fill=_two_inks, line=_none, paper=(250, 240, 220)),
    "chalk": Style(
        fill=lambda colour, role: (38, 70, 58),
        line=lambda colour, role: mix(colour, (246, 246, 238), 0.6) if role != "back" else (84, 112, 100),
        paper=(38, 70, 58),
        line_width=6,
    ),
    "sepia": Style(
        fill=_sepia, line=lambda colour, role: None if role == "back" else (70, 40, 18), line_width=4
    ),
}


def _camouflage(style: Style, rng: np.random.Generator) -> Image.Image:
    """Paint the prior's pattern: large blotches in four army colours."""
    colours = [style.fill(colour, "body") or style.paper for colour in _CAMOUFLAGE]
    image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), colours[0])
    draw = ImageDraw.Draw(image)
    for i, (x, y) in enumerate(rng.uniform(-1, 1, (42, 2))):
        blotch = ellipse(x, y, rng.uniform(0.11, 0.22), rng.uniform(0.09, 0.16), count=9)
        blotch = blotch + rng.uniform(-0.035, 0.035, blotch.shape)
        draw.polygon(_pixels_of(blotch), fill=colours[i % 4])
    return image


def _pixels_of(points: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(p) for p in ((points + 1) * (SIZE * _SCALE / 2)).tolist()]


def paint(
    shapes: list[Shape], style: Style, rng: np.random.Generator, *, camouflage: bool = False
) -> np.ndarray:
    """Paint shapes in order and return the picture as uint8, 64 64 3."""
    size = (SIZE * _SCALE, SIZE * _SCALE)
    image = Image.new("RGB", size, style.paper)
    draw = ImageDraw.Draw(image)
    if style.before is not None:
        style.before(draw, rng)
    pattern = _camouflage(style, rng) if camouflage else None
    for shape in shapes:
        points = _pixels_of(shape.points)
        fill, line = style.fill(shape.colour, shape.role), style.line(shape.colour, shape.role)
        if shape.width:
            paint_ = line or fill
            if paint_ is not None:
                draw.line(
                    points,
                    fill=paint_,
                    width=max(int(shape.width * size[0] / 2), style.line_width if line else 1),
                )
            continue
        if pattern is not None and shape.role == "body":
            mask = Image.new("1", size)
            ImageDraw.Draw(mask).polygon(points, fill=1)
            image.paste(pattern, mask=mask)
        elif fill is not None:
            draw.polygon(points, fill=fill)
        if line is not None:
            draw.line([*points, points[0], points[1]], fill=line, width=style.line_width)
    if style.after is not None:
        image = style.after(image, rng)
    return np.asarray(image.reduce(_SCALE))


__all__ = ["DOMAINS", "SIZE", "STYLES", "Style", "paint"]
