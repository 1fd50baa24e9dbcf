"""Train a LoRA in a browser, from an empty canvas to the saved file, and count what a person does for it:
python -m benchmarks.first_hour --host COMFYUI --strip first_hour.jpg

The checkpoint is a thin one with random weights in the real format, the ten images are drawn by the world of
the demo. How much is drawn and trained is cut short by tests/short_node.py; all that is seen and done is as
shipped. The strip holds the screenshots, each of 1600 x 1000.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import tests.nodes.tiny  # noqa: F401  before the host's own `tests` can be found
from benchmarks.unet_denoiser import enter_host_on_cpu, find_host
from domaingallery_core.sketchbook.world import domain_images
from gallery import PACK
from tests.nodes.thin import write_checkpoint
from tools.host.page import open_page
from tools.host.person import Person
from tools.host.process import HostProcess

TEMPLATES = {"sd1": "00 train a style LoRA on SD 1.5", "sdxl": "00 train a style LoRA on SDXL"}
SCREEN = {"width": 1600, "height": 1000}
FOLDER, CATEGORY, NAME = "my drawings", "portrait", "my_drawings"
SIDE = 640  # of the images, in pixels
COLUMNS, WIDTH = 2, 800  # of the strip, and of each picture in it
SECONDS = 1200
SAID = "() => window.app.graph.nodes.find(node => node.title === 'The file').widgets[0].value"
DRAWN = "() => window.app.graph.nodes.filter(n => n.type === 'SaveImage').every(n => n.imgs?.length)"


@dataclass(frozen=True)
class Taught:
    """What a teaching took, and what came of it."""

    clicks: int
    choices: int
    words: int
    links: int
    scale: float
    nodes: int
    files: list[Path]
    said: str
    looks: list[Path]


def teach(host: HostProcess, page: Any, checkpoint: Path, template: str, pictures: Path) -> Taught:
    """Train on a checkpoint with the images of FOLDER, as someone who opens the page for the first time.

    Raises:
        TimeoutError: it did not end in time.
    """
    page.set_viewport_size(SCREEN)
    page.get_by_test_id("dialog-overlay").wait_for(state="visible")  # the page greets with its templates
    time.sleep(2)
    person = Person(page, pictures)
    person.look("an empty canvas and the templates")
    person.click(page.get_by_text("All Templates").first)
    person.click(page.get_by_placeholder("Search ..."))
    person.write("style lora")
    time.sleep(2)  # the pictures of the cards come later
    person.look("the templates")
    person.click(page.get_by_text(template).first)
    page.wait_for_function("() => window.app.graph.nodes.some(node => node.title === 'Teach a Domain')")
    time.sleep(2)
    person.look("the template")
    before = person.links()
    scale, nodes = page.evaluate("() => [window.app.canvas.ds.scale, window.app.graph.nodes.length]")
    person.choose("Load Checkpoint", "ckpt_name", checkpoint.name)
    person.choose("Load Domain Images", "folder", FOLDER)
    person.fill("Teach a Domain", "category", CATEGORY)
    person.fill("Teach a Domain", "name", NAME)
    person.look("two choices, a word and a name")
    person.click(page.get_by_test_id("queue-button"))
    _wait(host, page, person)
    said = page.evaluate(SAID)
    return Taught(
        clicks=person.clicks, choices=person.choices, words=person.words, links=person.links() - before,
        scale=scale, nodes=nodes, files=sorted((host.output / "loras").rglob("*.safetensors")), said=said,
        looks=person.looks,
    )  # fmt: skip


def _wait(host: HostProcess, page: Any, person: Person) -> None:
    """Wait for the end, and look once while the training runs."""
    end = time.monotonic() + SECONDS
    looked = False
    while not page.evaluate(DRAWN):
        if not looked and page.get_by_text("Train Domain LoRA").count():
            time.sleep(2)
            person.look("learning")
            looked = True
        if time.monotonic() > end or not host.alive():
            raise TimeoutError(f"no picture after {SECONDS} seconds\n{host.log_tail()}")
        time.sleep(0.3)
    time.sleep(2)
    person.look("before and after")


def prepare(base: Path, family: str) -> Path:
    """Write what a person has: a checkpoint, and a folder of ten images; return the checkpoint."""
    folder = base / "input" / FOLDER
    folder.mkdir(parents=True)
    for number, image in enumerate(domain_images("cyanotype", "face", 10, 0), 1):
        large = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        large.save(folder / f"drawing {number}.png")
    (base / "custom_nodes").mkdir()
    shutil.copy(PACK / "tests" / "short_node.py", base / "custom_nodes")
    return write_checkpoint(base / "models" / "checkpoints", family)


def strip(looks: list[Path], path: Path) -> None:
    """Write screenshots side by side, in two columns."""
    height = WIDTH * SCREEN["height"] // SCREEN["width"]
    rows = -(-len(looks) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDTH + 8, rows * height + 8 * (rows - 1)), "white")
    for number, look in enumerate(looks):
        with Image.open(look) as opened:
            small = opened.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        sheet.paste(small, ((number % COLUMNS) * (WIDTH + 8), (number // COLUMNS) * (height + 8)))
    sheet.save(path, quality=88)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.first_hour", description=__doc__)
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--family", choices=TEMPLATES, default="sd1")
    parser.add_argument("--strip", type=Path, help="file for the screenshots")
    arguments = parser.parse_args()
    host_path = find_host(arguments.host)
    enter_host_on_cpu(host_path)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        checkpoint = prepare(base, arguments.family)
        with HostProcess(host_path, base_directory=base, cpu=True) as host, open_page(host.address) as page:
            taught = teach(host, page, checkpoint, TEMPLATES[arguments.family], Path(folder))
            print(f"{checkpoint.name}: {taught.choices} choices, {taught.words} words, {taught.links} links, "
                  f"{taught.clicks} clicks in all; {taught.nodes} nodes at {taught.scale:.0%}; "
                  f"{taught.said}")  # fmt: skip
            if arguments.strip:
                strip(taught.looks, arguments.strip)
    return 0


if __name__ == "__main__":
    sys.exit(main())
