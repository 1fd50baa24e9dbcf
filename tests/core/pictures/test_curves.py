"""The pictures of a training: where its curves, labels and previews are."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from domaingallery_core.pictures.curves import (
    COLOURS,
    COLUMN,
    COLUMNS,
    HEAD,
    POINTS,
    averaged,
    plot,
    shown_steps,
    stacked,
    strip,
)

GRID = "#dddddd"


@dataclass
class Written:
    """Hold a text of a picture: where its anchor is, its colour, and the size of its letters."""

    text: str
    x: float
    y: float
    fill: str
    anchor: str
    size: float


@pytest.fixture
def written(monkeypatch):
    """Give what is written into pictures, in the order in which it is."""
    found, usual = [], ImageDraw.ImageDraw.text

    def text(self, place, text, fill=None, font=None, anchor="la"):
        found.append(Written(text, *place, fill, anchor, getattr(font, "size", 0)))
        return usual(self, place, text, fill=fill, font=font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def pixels(image, colour):
    """Return which pixels have a colour, H W."""
    return (np.asarray(image) == ImageColor.getrgb(colour)).all(-1)


@dataclass
class Frame:
    """Hold where the lines of the powers of ten are: their ends, and their heights from the highest on."""

    left: int
    right: int
    heights: list[int]


def frame(image):
    grid = pixels(image, GRID)
    heights = (grid.sum(1) > 100).nonzero()[0].tolist()  # the edges of texts have this colour here and there
    columns = grid[heights].any(0).nonzero()[0]
    return Frame(columns.min(), columns.max(), heights)


def count_near(image, colour, x, y, reach=2):
    """Return how many pixels around a place have a colour."""
    x, y = round(x), round(y)
    around = pixels(image, colour)[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    return int(around.sum())


def is_written(image):
    """Tell whether something dark is in a picture that is white else."""
    return np.asarray(image.convert("L")).min() < 100


def test_a_loss_is_at_its_step_and_on_the_line_of_its_power():
    image = plot({"total": [1000.0, 10.0, 100.0, 10.0]}, {})

    lines = frame(image)
    top, middle, bottom = lines.heights
    assert middle - top == pytest.approx(bottom - middle, abs=1) and middle - top > 100
    for step, height in ((1, top), (2, bottom), (3, middle), (4, bottom)):
        x = lines.left + step / 4 * (lines.right - lines.left)
        assert count_near(image, COLOURS[0], x, height), f"step {step}"
    before = pixels(image, COLOURS[0])[:, lines.left + 5 : lines.left + 100]
    assert not before.any(), "step 1 is a quarter of the way from the left"


def test_between_the_powers_the_scale_is_logarithmic():
    image = plot({"total": [1.0, math.sqrt(10), 10.0]}, {})

    lines = frame(image)
    top, bottom = lines.heights
    assert count_near(image, COLOURS[0], lines.left + 2 / 3 * (lines.right - lines.left), (top + bottom) / 2)


def test_a_plot_has_the_size_that_is_asked_for_and_all_in_it():
    for size in ((800, 480), (1000, 300)):
        image = plot({"total": [1.0, 10.0]}, {}, size=size)

        lines = frame(image)
        assert image.size == size and image.getpixel((0, 0)) == (255, 255, 255)
        assert 0 < lines.left < 100 and size[0] / 2 < lines.right < size[0] - 150
        assert 0 < lines.heights[0] < 30 and size[1] - 60 < lines.heights[-1] < size[1] - 20
        assert count_near(image, COLOURS[0], lines.right, lines.heights[0])
    assert plot({"total": [1.0]}, {}).size == (800, 480)


def test_the_powers_are_written_beside_their_lines_and_five_steps_below(written):
    image = plot({"total": [0.01, *[0.5] * 98, 1.0]}, {})

    lines = frame(image)
    powers, steps = written[:3], written[3:-1]
    assert [(each.text, each.anchor) for each in powers] == [("1e-2", "rm"), ("1e-1", "rm"), ("1e0", "rm")]
    assert [each.y for each in powers] == pytest.approx(lines.heights[::-1], abs=1)
    assert all(0 < each.x < lines.left for each in powers)
    assert [(each.text, each.anchor) for each in steps] == [
        ("0", "mt"), ("25", "mt"), ("50", "mt"), ("75", "mt"), ("100", "mt"),
    ]  # fmt: skip
    width = lines.right - lines.left
    assert [each.x for each in steps] == pytest.approx([lines.left + k / 4 * width for k in range(5)], abs=1)
    assert all(lines.heights[-1] < each.y < 480 - 13 for each in steps)
    assert {each.fill for each in (*powers, *steps)} == {"black"}
    assert all(each.size > 12 for each in written), "it can be read"


def test_each_curve_has_a_colour_and_its_last_loss_beside_it(written):
    losses = {f"term{i}": [1.0, 10.0 ** (i + 1) / 3] for i in range(len(COLOURS) + 1)}
    image = plot(losses, {})

    lines = frame(image)
    legend = [each for each in written if each.text.startswith("term")]
    assert [each.text for each in legend] == [f"{name} {loss[-1]:.3g}" for name, loss in losses.items()]
    assert [each.fill for each in legend] == [*COLOURS, COLOURS[0]]
    assert all(lines.right < each.x < 800 - 100 for each in legend)
    heights = [each.y for each in legend]
    assert heights[0] == pytest.approx(lines.heights[0], abs=8)
    assert all(14 < later - earlier < 40 for earlier, later in itertools.pairwise(heights))
    assert all(pixels(image, colour)[:, : lines.right].any() for colour in COLOURS)


def test_the_validation_loss_is_a_curve_of_its_own_with_dots(written):
    """Its steps are in order, however they were given."""
    image = plot({"total": [1.0] * 4}, {4: 1.0, 2: 10.0, 1: 10.0})

    lines = frame(image)
    top, bottom = lines.heights
    width = lines.right - lines.left
    for step, height in ((1, top), (2, top), (4, bottom)):
        x = lines.left + step / 4 * width
        assert count_near(image, COLOURS[1], x, height, reach=3) > 15, f"a dot at step {step}"
    between = lines.left + 1.5 / 4 * width
    assert 0 < count_near(image, COLOURS[1], between, top, reach=3) < 15, "a line, and no dot"
    assert count_near(image, COLOURS[1], lines.left + 3 / 4 * width, (top + bottom) / 2, reach=3)
    assert 0 < count_near(image, COLOURS[0], lines.left + 2 / 4 * width, bottom, reach=3) < 15, (
        "no other has dots"
    )
    assert [each.text for each in written if each.fill in COLOURS] == ["total 1", "validation 1"]


def test_one_loss_alone_is_a_dot():
    image = plot({"total": [1.0]}, {})

    lines = frame(image)
    assert len(lines.heights) == 2, "there are two lines where all losses are one power"
    assert count_near(image, COLOURS[0], lines.right, lines.heights[1], reach=3) > 15


def test_what_was_validated_before_the_first_step_is_at_the_left():
    image = plot({}, {0: 10.0})

    lines = frame(image)
    assert count_near(image, COLOURS[0], lines.left, lines.heights[1], reach=3) > 15


def test_losses_that_a_logarithm_does_not_have_break_no_plot():
    """0 is at the bottom; what is not finite is left out."""
    image = plot({"total": [0.0, 1000.0, math.nan, math.inf, 100.0, 100.0]}, {2: math.inf})

    lines = frame(image)
    places = [lines.left + step / 6 * (lines.right - lines.left) for step in range(7)]
    assert len(lines.heights) == 2
    assert count_near(image, COLOURS[0], places[1], lines.heights[1])
    assert count_near(image, COLOURS[0], places[2], lines.heights[0])
    assert count_near(image, COLOURS[0], places[5], lines.heights[1])
    assert not pixels(image, COLOURS[1])[:, : lines.right].any()


@pytest.mark.parametrize("losses", [{}, {"total": []}, {"total": [0.0]}, {"total": [math.nan]}])
def test_a_plot_without_losses_says_so(losses, written):
    image = plot(losses, {})

    assert [each.text for each in written] == ["no losses yet"] and written[0].size > 12
    assert image.size == (800, 480) and is_written(image)


def test_a_term_without_losses_has_no_place_in_the_legend(written):
    plot({"prior": [], "total": [1.0]}, {})

    assert [each.text for each in written if each.fill in COLOURS] == ["total 1"]


def test_a_long_training_is_averaged_into_at_most_so_many_points():
    values = [float(i) for i in range(2 * POINTS + 1)]

    found = averaged(values)

    assert averaged([3.0, 1.0]) == [(1, 3.0), (2, 1.0)]
    assert len(averaged(values[:POINTS])) == POINTS and len(averaged(values[: POINTS + 1])) == POINTS // 2 + 1
    assert found[:2] == [(2, 1.0), (5, 4.0)], "each is the mean of three steps, at their middle"
    assert found[-1] == (2 * POINTS + 1, 2 * POINTS), "the rest is a mean of its own"


def test_a_strip_shows_the_first_and_the_last_step_and_some_between():
    assert shown_steps([]) == [] and shown_steps([0, 7]) == [0, 7]
    assert shown_steps(range(COLUMNS)) == list(range(COLUMNS))
    assert shown_steps([*range(0, 10 * COLUMNS - 9, 5)]) == [*range(0, 10 * COLUMNS - 9, 10)]
    found = shown_steps(range(COLUMNS + 1))
    assert len(set(found)) == COLUMNS and found[0] == 0 and found[-1] == COLUMNS and found == sorted(found)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((128, 96), (128, 96)), ((2 * COLUMN, COLUMN), (COLUMN, COLUMN // 2)), ((16, 8), (64, 32)),
     ((1000, 1), (COLUMN, 1))],
)  # fmt: skip
def test_a_strip_has_a_column_for_each_step_under_its_number(size, shown, written):
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    first, second, third = (Image.new("RGB", size, colour) for colour in colours)

    image = strip({0: [first], 30: [second, third]})

    width, height = shown
    assert image.size == (2 * width, HEAD + 2 * height)
    for colour, column, row in zip(colours, (0, 1, 1), (0, 0, 1), strict=True):
        expected = np.zeros((HEAD + 2 * height, 2 * width), bool)
        top = HEAD + row * height
        expected[top : top + height, column * width : (column + 1) * width] = True
        assert np.array_equal(pixels(image, colour), expected)
    assert [(each.text, each.x, each.y, each.anchor) for each in written] == [
        ("base", width / 2, HEAD / 2, "mm"), ("30", width * 1.5, HEAD / 2, "mm"),
    ]  # fmt: skip
    assert pixels(image, "white")[HEAD + height :, :width].all(), "a step with fewer pictures leaves room"
    assert is_written(image.crop((0, 0, width, HEAD)))


def test_images_are_put_under_each_other_at_one_width():
    red, green = Image.new("RGB", (40, 10), "#ff0000"), Image.new("RGB", (10, 10), "#00ff00")

    image = stacked([red, green, Image.new("RGB", (1000, 1), "#0000ff")], 20)

    assert image.size == (20, 5 + 20 + 1)
    assert pixels(image, "#ff0000").all(1).nonzero()[0].tolist() == [*range(5)]
    assert pixels(image, "#00ff00").all(1).nonzero()[0].tolist() == [*range(5, 25)]
    assert pixels(image, "#0000ff").all(1).nonzero()[0].tolist() == [25]
    assert stacked([red]).size == (800, 200)
