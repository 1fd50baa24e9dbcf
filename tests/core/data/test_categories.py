"""Category words, and which image shows which."""

from __future__ import annotations

import pytest

from domaingallery_core.data.categories import category_numbers, split_categories
from domaingallery_core.errors import InputError


def test_words_are_split_at_commas():
    assert split_categories("face") == ["face"]
    assert split_categories(" old face , house,") == ["old face", "house"]
    assert split_categories("  ") == []


def test_a_word_comes_once():
    with pytest.raises(InputError, match="got 'Face' more than once"):
        split_categories("Face, house, face")


@pytest.mark.parametrize(
    ("captions", "numbers"),
    [
        (["face", "house", "face"], [0, 1, 0]),
        (["a painted House by the sea", "an old face", "FACE."], [1, 0, 0]),
        (["2 face, house"], [0, 0, 1]),
        (["1 house,\n2 x face"], [1, 0, 0]),
        (["0 house, 003 face"], [0, 0, 0]),
        (["face, house"], [0, 1]),
        (["a house, at night"], [1]),
    ],
)
def test_captions_name_categories(captions, numbers):
    """The caption of one image alone may have commas."""
    assert category_numbers(captions, ["face", "house"], len(numbers)) == numbers


def test_the_longer_of_two_names_counts():
    assert category_numbers(["a cat face", "a cat"], ["cat", "cat face"], 2) == [1, 0]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["face", "house"], "category of each of the 3 images, got 2"),
        ([""], "category of each of the 3 images, got 0"),
        (["2 face, house, face"], "category of each of the 3 images, got more"),
        (["4 face"], "category of each of the 3 images, got more"),
        (["face", "a car", "house"], "image 2 .* of the categories face, house, got none in 'a car'"),
        (["face", "face", "a face in a house"], "image 3 .* got face and house"),
        (["face", "", "house"], "image 2 .* got none in ''"),
        (["faces", "face", "house"], "image 1 .* got none"),
    ],
)  # fmt: skip
def test_captions_that_cannot_work_are_named(captions, message):
    with pytest.raises(InputError, match=message):
        category_numbers(captions, ["face", "house"], 3)


def test_one_image_without_a_caption_has_no_category():
    with pytest.raises(InputError, match="category of each of the 1 images, got 0"):
        category_numbers([""], ["face", "house"], 1)
