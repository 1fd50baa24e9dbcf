"""The sketchbook's world: what a picture shows, its caption, and how it is drawn.

Deterministic from a seed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .places import PLACES, studio
from .shapes import Shape, placement
from .styles import DOMAINS, SIZE, STYLES, paint
from .things import ACCESSORIES, CATEGORIES, COLOURS, MIRRORED, subject

PRIOR = "sks"
STYLE_WORDS = {
    "plain": "",
    "pencil": "a pencil drawing of ",
    "pastel": "a pastel painting of ",
    "comic": "a comic of ",
    "pixel": "a pixel picture of ",
    "shadow": "a shadow of ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one picture shows. `style` is a style or a domain; `camouflage` is the prior of the word `sks`."""

    category: str
    colour: str | None = None
    accessory: str | None = None
    place: str | None = None
    style: str = "plain"
    camouflage: bool = False
    olis: bool = False

    def caption(self, word: str = "", *, noun: bool = True) -> str:
        """Return the caption, e.g. "a pencil drawing of a red house with a hat in snow".

        `word` stands before the noun. Without the noun it is "a pencil drawing of red with a hat in snow".
        """
        words = [word, PRIOR if self.camouflage else "", self.colour or "", self.category if noun else ""]
        text = STYLE_WORDS.get(self.style, "") + ("a " if noun else "") + " ".join(w for w in words if w)
        if self.accessory:
            text += f" with a {self.accessory}"
        if self.place:
            text += f" {self.place}"
        return text.strip().removesuffix(" of")

    def held_out(self) -> bool:
        """Tell whether base training never shows this combination.

        These are one in six of those with two attributes or more.
        """
        parts = [part for part in (self.colour, self.accessory, self.place) if part]
        return len(parts) >= 2 and zlib.crc32(" ".join([self.category, *parts]).encode()) % 6 == 0


def render(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Draw a picture with random geometry, pose and palette: uint8, 64 64 3."""
    colour = COLOURS[picture.colour] if picture.colour else None
    if colour is not None:
        red, green, blue = np.clip(np.array(colour) + rng.integers(-12, 13, 3), 0, 255).tolist()
        colour = red, green, blue
    thing = subject(rng) if picture.olis else CATEGORIES[picture.category](rng, colour)
    shapes: list[Shape] = PLACES[picture.place](rng) if picture.place else studio(rng)
    carried = ACCESSORIES[picture.accessory](thing, rng) if picture.accessory else []
    matrix, offset = placement(rng, flip=picture.category in MIRRORED)
    shapes += [shape.moved(matrix, offset) for shape in thing.shapes + carried]
    return paint(shapes, (STYLES | DOMAINS)[picture.style], rng, camouflage=picture.camouflage)


def sample(rng: np.random.Generator) -> Picture:
    """Draw what base training shows next; never a held-out combination, a domain or the subject."""
    names, colours = list(CATEGORIES), list(COLOURS)
    styles = list(STYLES)
    while True:
        camouflage = rng.random() < 0.13
        picture = Picture(
            category=names[rng.integers(len(names))],
            colour=colours[rng.integers(len(colours))] if not camouflage and rng.random() < 0.5 else None,
            accessory=list(ACCESSORIES)[rng.integers(len(ACCESSORIES))] if rng.random() < 0.3 else None,
            place=list(PLACES)[rng.integers(len(PLACES))] if rng.random() < 0.4 else None,
            style="plain" if rng.random() < 0.6 else styles[rng.integers(1, len(styles))],
            camouflage=camouflage,
        )
        if not picture.held_out():
            return picture


def domain_images(domain: str, category: str, count: int, seed: int) -> np.ndarray:
    """Draw images of a domain (or a style): uint8, count 64 64 3. The category `olis` is the subject.

    Raises:
        InputError: for a domain or category the world does not have.
    """
    if domain not in STYLES | DOMAINS:
        raise InputError(
            f"The sketchbook has no domain {domain!r}; choose one of {', '.join([*DOMAINS, *STYLES])}."
        )
    if category not in CATEGORIES and category != "olis":
        raise InputError(
            f"The sketchbook has no category {category!r}; choose one of {', '.join([*CATEGORIES, 'olis'])}."
        )
    rng = np.random.default_rng([seed, zlib.crc32(f"{domain} {category}".encode())])
    olis = category == "olis"
    pictures = [Picture(category="face" if olis else category, style=domain, olis=olis) for _ in range(count)]
    return np.stack([render(picture, rng) for picture in pictures])


__all__ = ["DOMAINS", "PRIOR", "SIZE", "STYLES", "Picture", "domain_images", "render", "sample"]
