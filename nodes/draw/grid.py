"""Labelled Image Grid: pictures of several samplers in rows and columns, with what each cost below."""

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.data.images import check_batch, checked_image
from ...domaingallery_core.errors import InputError
from ...domaingallery_core.pictures.grids import labelled_grid
from ..node import Node
from ..sockets import CATEGORY

MOST = 100


class DomainGalleryGrid(Node):
    """Put images into one picture with labels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        cell = io.Image.Input("image", tooltip="Pictures of one cell; a batch is put below one another.")
        line = io.String.Input("note", tooltip="A line below the grid, such as report of a training.")
        return io.Schema(
            node_id="DomainGalleryGrid",
            display_name="Labelled Image Grid",
            category=CATEGORY,
            description="Puts pictures into one, in rows and columns with labels, and writes lines of notes "
            "below: to hold methods, prompts or settings against each other.",
            search_aliases=["compare", "comparison", "contact sheet", "image grid", "xy plot", "labels"],
            inputs=[
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(cell, prefix="image", min=1, max=MOST),
                    tooltip="Pictures, row by row.",
                ),
                io.String.Input(
                    "columns", multiline=True, default="", tooltip="A line for each column, its label."
                ),
                io.String.Input(
                    "rows",
                    multiline=True,
                    default="",
                    tooltip="A line for each row, its label. Images fill the first row, then the next.",
                ),
                io.Autogrow.Input(
                    "notes",
                    template=io.Autogrow.TemplatePrefix(line, prefix="note", min=0, max=MOST),
                    tooltip="Lines below the grid.",
                ),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="All pictures as one image, with labels.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, columns: str, rows: str, notes=None) -> io.NodeOutput:
        across, down = labels(columns, rows, len(images))
        first = next(iter(images.values()))
        for name, image in images.items():
            check_batch(image, name)
            if image.shape[:3] != first.shape[:3]:
                raise InputError(
                    f"Expected pictures of one number and size, got {size(first)} first and {size(image)} "
                    f"for {name}. Draw all of them alike."
                )
        cells = [checked_image(image, name) for name, image in images.items()]
        table = [cells[i : i + len(across)] for i in range(0, len(cells), len(across))]
        lines = [line for note in (notes or {}).values() for line in note.splitlines()]
        return io.NodeOutput(labelled_grid(table, down, across, lines))


def labels(columns: str, rows: str, count: int) -> tuple[list[str], list[str]]:
    """Return the labels of columns and rows for a number of cells; an empty text has one label without words.

    Raises:
        InputError: so many columns and rows have another number of cells.
    """
    across, down = ([line.strip() for line in text.strip().splitlines()] or [""] for text in (columns, rows))
    if len(across) * len(down) != count:
        raise InputError(
            f"Expected {len(across) * len(down)} images for {len(across)} columns and {len(down)} rows, got "
            f"{count}. Write a line for each column and row, or connect as many images."
        )
    return across, down


def size(image: Tensor) -> str:
    """Return the number and size of pictures in words."""
    count, height, width = image.shape[:3]
    return f"{count} of {width} x {height}"
