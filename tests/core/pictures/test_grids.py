"""Grids of pictures with labels."""

from __future__ import annotations

import pytest
import torch

from domaingallery_core.pictures.grids import PAPER, labelled_grid, tensor_to_images

COLOURS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])


def flat(colour, count=1, height=140, width=130):
    return colour.expand(count, height, width, 3)


@pytest.mark.parametrize("count", [1, 2])
def test_each_cell_is_in_its_place(count):
    """Pictures keep their pixels, in rows and columns, those of a cell below one another."""
    cells = [
        [flat(COLOURS[0], count), flat(COLOURS[1], count)],
        [flat(COLOURS[2], count), flat(COLOURS[3], count)],
    ]

    grid = labelled_grid(cells, ["V-uncond", "VN-N"], ["0.5", "1"])

    assert grid.dtype == torch.float32 and grid.shape[0] == 1 and grid.shape[-1] == 3
    found = [(grid[0] == colour).all(-1).nonzero() for colour in COLOURS]
    assert [len(place) for place in found] == [140 * 130 * count] * 4
    (top, left), (bottom, right) = found[0].min(0).values.tolist(), found[3].max(0).values.tolist()
    assert left > 40 and 12 < top < 24, "there is room for the labels, which are small as the pictures are"
    assert found[1][0, 0] == top and found[1][:, 1].min() > found[0][:, 1].max()
    assert found[2][0, 1] == left and found[2][:, 0].min() > found[0][:, 0].max()
    assert bottom < grid.shape[1] and right < grid.shape[2]


@pytest.mark.parametrize("count", [1, 2])
def test_labels_are_in_the_middle_of_what_they_name(count):
    cells = [[flat(colour, count, 240, 200) for colour in pair] for pair in (COLOURS[:2], COLOURS[2:])]

    grid = labelled_grid(cells, ["0", "0"], ["0", "0"])[0]

    top, left = (grid == COLOURS[0]).all(-1).nonzero().min(0).values.tolist()
    ink = (grid - torch.tensor(PAPER) / 255).abs().amax(-1) > 0.5
    for colour in COLOURS:
        picture = (grid == colour).all(-1)
        rows, columns = picture.any(1), picture.any(0)
        above, beside = ink & columns, ink & rows[:, None]
        above[top:] = beside[:, left:] = False
        assert middle(above)[1] == pytest.approx(middle(picture)[1], abs=1)
        assert middle(above)[0] == pytest.approx(top / 2, abs=1)
        assert middle(beside)[0] == pytest.approx(middle(picture)[0], abs=1)


def middle(pixels):
    """Return the middle of pixels from top to bottom, and from left to right."""
    places = pixels.nonzero().float()
    return ((places.min(0).values + places.max(0).values) / 2).tolist()


def test_labels_are_written_beside_and_above():
    grid = labelled_grid([[flat(COLOURS[0])]], ["V-uncond"], ["0.5"])
    plain = labelled_grid([[flat(COLOURS[0])]], ["        "], ["   "])

    paper = torch.tensor(PAPER) / 255
    ink = ((grid[0] - paper).abs().amax(-1) > 0.5) & ~(grid[0] == COLOURS[0]).all(-1)
    place = (grid[0] == COLOURS[0]).all(-1).nonzero()
    top, left = place.min(0).values.tolist()
    assert ink[:top].any() and ink[top:, :left].any() and not ink[top:, left:].any()
    assert not ((plain[0] - paper).abs().amax(-1) > 0.5)[:10].any()


@pytest.mark.parametrize("more", [[], [0.3]])
def test_what_is_brighter_than_white_is_white_and_transparency_is_left_out(more):
    [image] = tensor_to_images(torch.tensor([[[[-1.0, 0.5, 2.0, *more]]]]))

    assert image.mode == "RGB" and image.getpixel((0, 0)) == (0, 128, 255)


def test_small_pictures_are_enlarged_sharp_by_a_whole_number():
    """Each pixel becomes a square; nothing is blended."""
    picture = torch.rand(1, 48, 40, 3, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255

    grid = labelled_grid([[picture]], [""], [""])[0]

    large = picture[0].repeat_interleave(3, 0).repeat_interleave(3, 1)
    height, width = large.shape[:2]
    assert (height, width) == (144, 120)
    places = [
        (y, x)
        for y in range(grid.shape[0] - height + 1)
        for x in range(grid.shape[1] - width + 1)
        if torch.equal(grid[y : y + height, x : x + width], large)
    ]
    assert len(places) == 1


def test_a_label_wider_than_the_pictures_makes_room():
    """So that the labels of two columns do not run into each other."""
    words = "a label of many words for one column"

    narrow = labelled_grid([[flat(COLOURS[0]), flat(COLOURS[1])]], [""], ["", ""])[0]
    grid = labelled_grid([[flat(COLOURS[0]), flat(COLOURS[1])]], [""], [words, words])[0]

    found = [(grid == colour).all(-1).nonzero() for colour in COLOURS[:2]]
    assert [len(place) for place in found] == [140 * 130] * 2
    assert grid.shape[1] > narrow.shape[1] + 60
    ink = ((grid[: int(found[0][0, 0])] - torch.tensor(PAPER) / 255).abs().amax(-1) > 0.5).any(0)
    between = (int(found[0][:, 1].max()) + int(found[1][:, 1].min())) // 2
    assert not ink[between - 1 : between + 2].any()


def test_notes_are_lines_below_the_grid():
    plain = labelled_grid([[flat(COLOURS[0])]], ["a"], ["b"])[0]
    noted = labelled_grid(
        [[flat(COLOURS[0])]], ["a"], ["b"], ["one", "a note that is much longer than the grid is wide"]
    )[0]

    assert torch.equal(noted[: plain.shape[0], : plain.shape[1]], plain)
    ink = ((noted - torch.tensor(PAPER) / 255).abs().amax(-1) > 0.5)[plain.shape[0] :]
    rows = ink.any(1).int().diff().clamp(0).sum()
    assert rows >= 2 and noted.shape[1] > plain.shape[1]
    assert not ink[:, -2:].any(), "the longest line ends before the edge"
