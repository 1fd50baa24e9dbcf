"""The pictures of a training: its losses as curves, its previews as a strip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#222222", "#c0392b", "#2471a3", "#d68910", "#1e8449", "#7d3c98", "#0e9aa7", "#8d6e63")
VALIDATION = "validation"
#: A curve has at most so many points; each is the mean over its steps.
POINTS = 240
#: A strip has at most so many columns, of at most so many pixels.
COLUMNS, COLUMN = 16, 256
HEAD = 20


def plot(
    losses: Mapping[str, Sequence[float]],
    validation: Mapping[int, float],
    *,
    size: tuple[int, int] = (800, 480),
) -> Image.Image:
    """Draw each loss term over the steps on a logarithmic scale, and the validation loss by its steps."""
    curves = {name: averaged(values) for name, values in losses.items() if values}
    if validation:
        curves[VALIDATION] = sorted(validation.items())
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    values = [y for curve in curves.values() for _, y in curve if y > 0 and math.isfinite(y)]
    if not values:
        draw.text((20, 20), "no losses yet", fill="black", font=_font(16))
        return image
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    last = max(x for curve in curves.values() for x, _ in curve)
    left, top, right, bottom = 64, 16, size[0] - 190, size[1] - 36

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(max(y, 10.0**low)) - low) / (high - low)
        return left + x / max(last, 1) * (right - left), bottom - share * (bottom - top)

    for power in range(low, high + 1):
        y = place(0, 10.0**power)[1]
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((left - 8, y), f"1e{power}", fill="black", font=_font(13), anchor="rm")
    for share in range(5):
        step = round(last * share / 4)
        draw.text((place(step, 1)[0], bottom + 8), str(step), fill="black", font=_font(13), anchor="mt")
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(x, y) for x, y in curve if math.isfinite(y)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2, joint="curve")
        for x, y in points if name == VALIDATION or len(points) == 1 else ():
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        text = f"{name} {curve[-1][1]:.3g}"
        draw.text((right + 12, top + 22 * number), text, fill=colour, font=_font(14))
    return image


def averaged(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return at most POINTS of (step, mean of the values around it); steps count from 1."""
    size = math.ceil(len(values) / POINTS)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [(size * i + (len(part) + 1) / 2, sum(part) / len(part)) for i, part in enumerate(parts)]


def shown_steps(steps: Sequence[int]) -> list[int]:
    """Return at most COLUMNS of the steps, evenly, with the first and the last."""
    if len(steps) <= COLUMNS:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]


def strip(pictures: Mapping[int, Sequence[Image.Image]]) -> Image.Image:
    """Put the pictures of each step in a column under its number; step 0 is the base model."""
    first = next(iter(pictures.values()))[0]
    width = max(min(first.width, COLUMN), 64)  # room for the number
    height = max(1, round(first.height * width / first.width))
    rows = max(map(len, pictures.values()))
    image = Image.new("RGB", (width * len(pictures), HEAD + height * rows), "white")
    draw = ImageDraw.Draw(image)
    for column, (step, drawn) in enumerate(pictures.items()):
        text = str(step) if step else "base"
        draw.text((width * column + width // 2, HEAD // 2), text, fill="black", font=_font(13), anchor="mm")
        for row, picture in enumerate(drawn):
            image.paste(picture.resize((width, height)), (width * column, HEAD + height * row))
    return image


def stacked(images: Sequence[Image.Image], width: int = 800) -> Image.Image:
    """Put images of any size under each other, all of one width."""
    fitted = [each.resize((width, max(1, round(each.height * width / each.width)))) for each in images]
    image = Image.new("RGB", (width, sum(each.height for each in fitted)), "white")
    top = 0
    for each in fitted:
        image.paste(each, (0, top))
        top += each.height
    return image


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
