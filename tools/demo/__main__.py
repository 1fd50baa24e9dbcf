"""Run the main job in a real host and measure it: `python3 gallery.py demo`."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from domaingallery_core.errors import DomainGalleryError
from domaingallery_core.sketchbook.classifier import Classifier
from gallery import PACK

from ..host.client import HostClient, Interrupted, PromptError
from ..host.process import HostError, HostProcess, stop_on_terminate
from ..make.workflow_parts import DOMAIN, DOMAIN_LORA
from ..make.workflows import FOLDER, pack_version
from .measure import shares
from .scenarios import TAUGHT, Demo
from .sheet import make_sheet, make_thumbnail, plot_losses
from .terminal import Terminal
from .verdict import verdict

TITLE = "A domain taught by ten images, and what it draws"
SHIPPED_LORA = PACK / "domaingallery_core" / "sketchbook" / "loras" / DOMAIN_LORA
LOG = "host.log"  # in the output folder while the job runs, and afterwards if it failed


def run(host: str, output: Path, seed: int, terminal: Terminal, *, ship: bool = False) -> dict[str, Any]:
    """Run the whole job, write its files into `output` and return the report.

    Raises:
        HostError, PromptError, Interrupted: the host stopped, or a node failed.
        DomainGalleryError: a file of the pack is missing.
        OSError: the output folder cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    classifier = Classifier.load()
    with ExitStack() as stack:
        with terminal.stage("start ComfyUI", "start"):
            process = stack.enter_context(HostProcess(host, log=output / LOG))
        demo = Demo(process.client, seed, terminal)
        scenarios = demo.run()
        with terminal.stage("measure", "measure"):
            measured = shares(scenarios, classify=classifier.classify, domain=DOMAIN, taught=TAUGHT)
            make_sheet(TITLE, demo.sheet_rows).save(output / "gallery.png")
            plot_losses(demo.losses, output / "losses.png")
        for name, file in demo.loras.items():
            shutil.copyfile(
                process.output / file["subfolder"] / file["filename"], output / f"{name}.safetensors"
            )
        report = {
            "seed": seed,
            "seconds": seconds(terminal),
            **measured,
            **about(process.client),
        }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output / LOG).unlink(missing_ok=True)
    if ship:
        put_into_pack(demo, output)
    return report


def put_into_pack(demo: Demo, output: Path) -> None:
    """Replace what the pack ships of such a run: the LoRA, the thumbnails, the picture of the README."""
    SHIPPED_LORA.parent.mkdir(exist_ok=True)
    shutil.copyfile(output / "domain.safetensors", SHIPPED_LORA)
    for name, images in demo.thumbnails.items():
        make_thumbnail(images).save(FOLDER / f"{name}.jpg", quality=85)
    (PACK / "docs").mkdir(exist_ok=True)
    shutil.copyfile(output / "gallery.png", PACK / "docs" / "gallery.png")


def seconds(terminal: Terminal) -> dict[str, float]:
    """Return the time of each stage, and of all."""
    times = {name: round(value, 1) for name, value in terminal.seconds.items()}
    return {**times, "total": round(sum(terminal.seconds.values()), 1)}


def about(client: HostClient) -> dict[str, Any]:
    """Return what the job ran with."""
    stats = client.system_stats()
    versions = {
        "pack": pack_version(),
        "host": stats["system"]["comfyui_version"],
        "torch": stats["system"]["pytorch_version"],
        "peft": version("peft"),
        "python": platform.python_version(),
    }
    return {"versions": versions, "device": stats["devices"][0]["name"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.demo")
    parser.add_argument("--host", required=True, help="folder of ComfyUI")
    parser.add_argument("--output", type=Path, required=True, help="folder for what it makes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ship",
        action="store_true",
        help="also put the LoRA, the thumbnails and the README's picture into the pack",
    )
    arguments = parser.parse_args()
    stop_on_terminate()
    terminal = Terminal()
    try:
        report = run(arguments.host, arguments.output, arguments.seed, terminal, ship=arguments.ship)
    except (HostError, PromptError, Interrupted, DomainGalleryError, OSError) as error:
        print(f"gallery.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gallery.py: stopped", file=sys.stderr)
        return 130
    terminal.say(f"The pictures are in {arguments.output / 'gallery.png'}, the numbers in report.json.")
    terminal.say(verdict(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
