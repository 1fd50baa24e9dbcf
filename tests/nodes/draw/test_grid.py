"""Labelled Image Grid: pictures in rows and columns, and notes."""

from __future__ import annotations

import pytest
import torch


def pictures(count, number=1, side=130):
    stream = torch.Generator().manual_seed(0)
    return {f"image{i}": torch.rand(number, side, side, 3, generator=stream) for i in range(count)}


def grid(nodes, images, columns="a\nb\nc", rows="one\ntwo", notes=None):
    node = nodes("nodes.draw.grid").DomainGalleryGrid
    return node.execute(images=images, columns=columns, rows=rows, notes=notes or {})


def test_images_fill_the_rows_in_their_order(nodes, monkeypatch):
    seen = []
    module = nodes("nodes.draw.grid")
    monkeypatch.setattr(module, "labelled_grid", lambda *args: seen.append(args))
    images = pictures(6)

    grid(nodes, images, notes={"note0": "first\nsecond", "note1": "third"})

    (cells, rows, columns, notes), = seen  # fmt: skip
    assert rows == ["one", "two"] and columns == ["a", "b", "c"]
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            assert torch.equal(cell, images[f"image{3 * i + j}"])
    assert notes == ["first", "second", "third"]


def test_without_labels_it_is_one_picture(nodes):
    [made] = grid(nodes, pictures(1, number=2), columns="", rows="").result

    assert made.shape[0] == 1 and made.shape[1] > 2 * 130


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(5), "Expected 6 images for 3 columns and 2 rows, got 5"),
        (pictures(7), "Expected 6 images for 3 columns and 2 rows, got 7"),
        (pictures(5) | {"image5": torch.zeros(1, 64, 130, 3)}, "got 1 of 130 x 130 first and 1 of 130 x 64"),
        (pictures(5) | {"image5": torch.zeros(2, 130, 130, 3)}, "and 2 of 130 x 130"),
        (None, "Expected images to be connected, got nothing"),
        ({}, "Expected 6 images for 3 columns and 2 rows, got 0"),
        (pictures(5) | {"image5": torch.full((1, 130, 130, 3), float("nan"))}, "image5 of plain numbers"),
        (pictures(5) | {"image5": torch.zeros(1, 130, 130)}, "image5 as a batch of RGB images"),
        (pictures(5) | {"image5": "a word"}, "Expected image to be images, got 'a word'"),
    ],
)  # fmt: skip
def test_what_makes_no_grid_is_refused(nodes, errors, images, message):
    with pytest.raises(errors.InputError, match=message):
        grid(nodes, images)
