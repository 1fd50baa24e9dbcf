"""Draw the icon and the banner that the registry shows of the pack: python -m tools.make.emblem

Both show the sketchbook's world: the same things as they are, and in domains. Nothing in them is drawn by a
model, so they come out the same on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domaingallery_core.sketchbook.world import SIZE, Picture, render
from gallery import PACK

FOLDER = PACK / "docs" / "registry"
PAPER, INK, FAINT = (252, 251, 248), (34, 36, 40), (96, 98, 104)
#: A pixel of the world is so many of the icon, and of the banner.
ICON, BANNER = 6, 3
LOOKS = ("plain", "cyanotype", "neon", "chalk")
THINGS, SEED = ("cat", "house", "car"), 3


def drawn(category: str, style: str, scale: int) -> Image.Image:
    """Return a thing, the same in every style, enlarged so that each pixel stays one."""
    picture = Picture(category=category, style=style, colour="red")
    image = Image.fromarray(render(picture, np.random.default_rng(SEED)))
    return image.resize((SIZE * scale, SIZE * scale), Image.Resampling.NEAREST)


def make_icon() -> Image.Image:
    """Return a square of 400 pixels: a cat, as it is and in the domain, on two sides of a diagonal."""
    size = SIZE * ICON
    plain, domain = (drawn(THINGS[0], style, ICON) for style in LOOKS[:2])
    above = Image.new("L", (size, size), 0)
    ImageDraw.Draw(above).polygon([(0, 0), (size, 0), (0, size)], fill=255)
    icon = Image.new("RGB", (400, 400), PAPER)
    icon.paste(Image.composite(plain, domain, above), ((400 - size) // 2, (400 - size) // 2))
    return icon


def make_banner() -> Image.Image:
    """Return 21 : 9: what the pack is called and does, and three things in four looks."""
    cell = SIZE * BANNER
    left = 3 * cell
    banner = Image.new("RGB", (7 * cell, 3 * cell), PAPER)
    for row, category in enumerate(THINGS):
        for column, style in enumerate(LOOKS):
            banner.paste(drawn(category, style, BANNER), (left + column * cell, row * cell))
    draw = ImageDraw.Draw(banner)
    draw.text((48, 180), "DomainGallery", fill=INK, font=ImageFont.load_default(64))
    words = "Ten images teach a model a look.\nIt draws anything in it."
    draw.multiline_text((50, 276), words, fill=FAINT, font=ImageFont.load_default(30), spacing=12)
    return banner


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("icon", make_icon()), ("banner", make_banner())):
        path = folder / f"{name}.png"
        image.save(path, optimize=True)
        print(f"{path}: {image.width} x {image.height}, {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
