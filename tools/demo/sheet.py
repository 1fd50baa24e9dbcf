"""Pictures of pictures: the labelled sheet, the thumbnails of the workflows, and the plot of the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Row = tuple[str, Sequence[Image.Image]]

CELL, GAP, MARGIN, LABEL = 96, 6, 24, 250
TERMS, PANELS = ("target", "prior", "disentanglement", "erasure", "similarity", "total"), 3
PAPER, INK, FAINT = (252, 251, 248), (34, 36, 40), (120, 122, 128)


def make_sheet(title: str, rows: Sequence[Row], columns: int = 10) -> Image.Image:
    """Return a sheet with one labelled row of pictures for each of `rows`.

    A label may have a second line, which is written smaller.
    """
    width = MARGIN * 2 + LABEL + columns * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, MARGIN * 2 + 52 + len(rows) * (CELL + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=ImageFont.load_default(26))
    y = MARGIN + 52
    for label, images in rows:
        first, _, second = label.partition("\n")
        draw.text((MARGIN, y + CELL / 2 - 24), first, fill=INK, font=ImageFont.load_default(18))
        draw.text((MARGIN, y + CELL / 2), second, fill=FAINT, font=ImageFont.load_default(15))
        for i, image in enumerate(images[:columns]):
            sheet.paste(
                image.resize((CELL, CELL), Image.Resampling.LANCZOS), (MARGIN + LABEL + i * (CELL + GAP), y)
            )
        y += CELL + GAP
    return sheet


def make_thumbnail(images: Sequence[Image.Image], columns: int = 2, size: int = 384) -> Image.Image:
    """Return a square of the first pictures."""
    cell = size // columns
    thumbnail = Image.new("RGB", (cell * columns, cell * columns), PAPER)
    for i, image in enumerate(images[: columns * columns]):
        thumbnail.paste(
            image.resize((cell, cell), Image.Resampling.LANCZOS), (i % columns * cell, i // columns * cell)
        )
    return thumbnail


def plot_losses(stages: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw one panel for each loss term, with a curve for each stage that has it, into a PNG file."""
    from matplotlib.figure import Figure

    found = {term for losses in stages.values() for term in losses}
    terms = [*(term for term in TERMS if term in found), *sorted(found - {*TERMS})]
    rows = -(-len(terms) // PANELS)
    figure = Figure(figsize=(4 * PANELS, 3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, PANELS, squeeze=False).flat)
    for axes, term in zip(panels, terms, strict=False):
        for i, (stage, losses) in enumerate(stages.items()):
            if term in losses:
                steps = range(1, len(losses[term]) + 1)
                axes.plot(steps, losses[term], color=f"C{i}", alpha=0.25, linewidth=0.8)
                axes.plot(steps, smoothed(losses[term]), color=f"C{i}", label=stage)
        axes.set(title=term, xlabel="step")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.2)
    for axes in panels[len(terms) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=110)


def smoothed(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Return a running average that starts at the first values instead of at zero."""
    result, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result
