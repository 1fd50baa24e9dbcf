"""Pictures as tensors and back, and in rows and columns with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

PAPER, INK = (252, 251, 248), (34, 36, 40)
#: Smaller pictures are enlarged by a whole number, sharp, until a side has at least so many pixels.
LEAST_SIDE = 128


def labelled_grid(
    cells: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[str] = (),
) -> Tensor:
    """Return one image (1 H W 3, 0..1) of cells in rows and columns.

    Args:
        cells: row by row, images of one size and number (B H W 3, 0..1); those of a cell are put below one
            another. Their pixels come out as 8 bits.
        notes: lines that are written below.
    """
    count, height, width, _ = cells[0][0].shape
    times = max(1, -(-LEAST_SIDE // max(height, width)))
    height, width = height * times, width * times
    text = max(12, min(36, height // 12))
    font = ImageFont.load_default(text)
    gap = max(2, text // 4)
    left = gap * 2 + max(round(font.getlength(label)) for label in rows)
    wide = max(width, *(round(font.getlength(label)) + gap for label in columns))
    top = text + gap * 3
    cell = count * (height + gap) + gap  # with room to the next row
    bottom = top + len(rows) * cell
    line = text + gap
    longest = max((round(font.getlength(note)) for note in notes), default=0)
    size = (
        max(left + len(columns) * (wide + gap), longest + 2 * gap),
        bottom + (gap + len(notes) * line if notes else 0),
    )
    grid = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(grid)
    for i, label in enumerate(columns):
        draw.text((left + i * (wide + gap) + wide / 2, top / 2), label, fill=INK, font=font, anchor="mm")
    for j, (label, row) in enumerate(zip(rows, cells, strict=True)):
        y = top + j * cell
        draw.text((gap, y + (cell - 2 * gap) / 2), label, fill=INK, font=font, anchor="lm")
        for i, images in enumerate(row):
            x = left + i * (wide + gap) + (wide - width) // 2
            for k, image in enumerate(tensor_to_images(images)):
                sharp = image.resize((width, height), Image.Resampling.NEAREST)
                grid.paste(sharp, (x, y + k * (height + gap)))
    for i, note in enumerate(notes):
        draw.text((gap, bottom + i * line + line / 2), note, fill=INK, font=font, anchor="lm")
    return image_to_tensor(grid)


def image_to_tensor(image: Image.Image) -> Tensor:
    """Return a picture as an image, 1 H W 3 in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]


def tensor_to_images(images: Tensor) -> list[Image.Image]:
    """Return the pictures of images (B H W C in 0..1), in 8 bits."""
    pixels = (images[..., :3].float().clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]
