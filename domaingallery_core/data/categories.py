"""The category words of a domain of several categories, and which image shows which."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import InputError, shown

_COUNTED = re.compile(r"(\d+)\s*x?\s+(.+)")


def split_categories(text: str) -> list[str]:
    """Return the words of "face, house", each once, in their order.

    Raises:
        InputError: one comes twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    folded = [word.casefold() for word in words]
    if twice := [word for word, f in zip(words, folded, strict=True) if folded.count(f) > 1]:
        raise InputError(
            f"Expected different categories, got {shown(twice[0])} more than once. Name each once, such as "
            '"face, house".'
        )
    return words


def category_numbers(captions: Sequence[str], categories: Sequence[str], images: int) -> list[int]:
    """Return for each image the position of its category.

    Args:
        captions: one for each image, or one text for all such as "6 face, 4 house" or "face, house, face".

    Raises:
        InputError: there are not as many captions as images, or one names no category or several.
    """
    captions = [caption for caption in captions if caption.strip()] if len(captions) == 1 else list(captions)
    if len(captions) == 1 and images > 1:
        captions = _spelled_out(captions[0], images)
    if len(captions) != images:
        raise InputError(
            f"Expected the category of each of the {images} images, got "
            f"{len(captions) if len(captions) <= images else 'more'}. Connect the "
            f'captions of the images, or enter them, such as "6 {categories[0]}, 4 {categories[-1]}".'
        )
    return [_category_number(i, caption, categories) for i, caption in enumerate(captions, 1)]


def _spelled_out(text: str, most: int) -> list[str]:
    """Return "2 face, house" as face, face, house; one more than `most` where there would be more."""
    found: list[str] = []
    for part in re.split(r"[,\n]", text):
        if part.strip():
            counted = _COUNTED.fullmatch(part.strip())
            if counted is None:
                found.append(part.strip())
            else:  # a number may have thousands of digits
                digits = counted[1].lstrip("0") or "0"
                found += [counted[2]] * min(int(digits[:10]), most + 1)
        if len(found) > most:
            return found[: most + 1]
    return found


def _category_number(image: int, caption: str, categories: Sequence[str]) -> int:
    named = [
        i
        for i, word in enumerate(categories)
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE)
    ]
    # "cat face" is the category of that name, even where "face" is one as well.
    named = [i for i in named if not any(j != i and _within(categories[i], categories[j]) for j in named)]
    if len(named) != 1:
        found = "none" if not named else " and ".join(categories[i] for i in named)
        raise InputError(
            f"Expected image {image} to be of one of the categories {', '.join(categories)}, got {found} in "
            f"{shown(caption.strip())}. Name one of them for each image."
        )
    return named[0]


def _within(word: str, other: str) -> bool:
    return word.casefold() in other.casefold()
