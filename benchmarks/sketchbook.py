"""Measure what the demo model draws, and draw the grids of its card: python -m benchmarks.sketchbook
--host COMFYUI

Draws 500 prompts with attributes (half of them combinations that base training never showed) and
classifies the pictures. With --grids it also draws those grids, `--grids docs` where the card shows them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from domaingallery_core.sketchbook.classifier import HEADS, Classifier
from domaingallery_core.sketchbook.weights import PATH, Weights
from domaingallery_core.sketchbook.world import Picture, sample
from tools.host.load_pack import load_pack

SHOWN = {"colour": ("plain", "pastel", "comic", "pixel")}  # styles in which the attribute can be seen


class Painter:
    """Draw pictures with the demo model through the host's own nodes."""

    def __init__(self, host: Path, *, steps: int, cfg: float) -> None:
        pack = load_pack(host)
        import nodes as host_nodes

        self.host, self.steps, self.cfg = host_nodes, steps, cfg
        builder = sys.modules[pack.__name__ + ".nodes.demo.sketchbook"]
        with torch.inference_mode():
            self.model, self.clip, self.vae = builder.load_sketchbook()

    @torch.inference_mode()
    def draw(self, prompts: list[str], seed: int) -> torch.Tensor:
        """Draw one picture a prompt, B 3 64 64 in 0..1."""
        encode = self.host.CLIPTextEncode().encode
        images = []
        for start in range(0, len(prompts), 25):
            batch = prompts[start : start + 25]
            positive = torch.cat([encode(self.clip, text)[0][0][0] for text in batch])
            negative = encode(self.clip, "")[0][0][0].expand_as(positive)
            latent = {"samples": torch.zeros(len(batch), 24, 16, 16)}
            out = self.host.common_ksampler(
                self.model, seed + start, self.steps, self.cfg, "dpmpp_2m", "normal",
                [[positive, {}]], [[negative, {}]], latent,
            )[0]  # fmt: skip
            images.append(self.vae.decode(out["samples"]).permute(0, 3, 1, 2))
        return torch.cat(images)


def pictures(count: int, seed: int) -> list[Picture]:
    """Draw what to ask for, at least one attribute each.

    Every second one is a combination held out of training.
    """
    rng = np.random.default_rng(seed)
    found: list[Picture] = []
    while len(found) < count:
        picture = sample(rng)
        if len(found) % 2:
            values = {
                name: HEADS[name][rng.integers(1, len(HEADS[name]))] if rng.random() < 0.6 else None
                for name in ("colour", "accessory", "place")
            }
            picture = Picture(category=picture.category, **values)
            if not picture.held_out():
                continue
        if (
            picture.colour or picture.accessory or picture.place or picture.style != "plain"
        ) and not picture.camouflage:
            found.append(picture)
    return found


def shares(asked: list[Picture], images: torch.Tensor) -> dict[str, float]:
    """Return the share of pictures with the category asked for, and with each attribute that was named."""
    labels = Classifier.load().classify(images)
    right: dict[str, list[bool]] = {
        name: [] for name in ("category", "colour", "accessory", "place", "style", "attribute")
    }
    right["attribute held out"] = []
    for i, picture in enumerate(asked):
        right["category"].append(labels.category[i] == picture.category)
        for name in ("colour", "accessory", "place", "style"):
            wanted = getattr(picture, name)
            if not wanted or wanted == "plain" or picture.style not in SHOWN.get(name, (picture.style,)):
                continue
            hit = getattr(labels, name)[i] == wanted
            right[name].append(hit)
            right["attribute"].append(hit)
            if picture.held_out():
                right["attribute held out"].append(hit)
    return {name: round(float(np.mean(hits)), 3) for name, hits in right.items() if hits}


def grid(images: torch.Tensor, columns: int, path: Path) -> None:
    """Write images as a grid, twice their size."""
    tiles = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(tiles[i : i + columns]), axis=1) for i in range(0, len(tiles), columns)]
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=Path, required=True, help="folder of ComfyUI")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--grids", type=Path, help="folder for the grids of the model card")
    options = parser.parse_args()
    painter = Painter(options.host, steps=options.steps, cfg=options.cfg)
    if options.grids:
        names = HEADS["category"]
        plain = [f"a {word}{c}" for word in ("", "sks ", "red ", "blue ") for c in names for _ in range(2)]
        places = [f"a {c} {p}" for p in HEADS["place"][1:] for c in names for _ in range(2)]
        hard = [p.caption() for p in pictures(96, 5)[1::2]]
        styles = [
            f"a {s} of a {c}"
            for s in ("pencil drawing", "pastel painting", "comic", "pixel picture", "shadow")
            for c in names
            for _ in range(2)
        ]
        for name, prompts in (("plain", plain), ("places", places), ("held-out", hard), ("styles", styles)):
            grid(painter.draw(prompts, options.seed), 12, options.grids / f"sketchbook-{name}.png")
    if options.count:
        asked = pictures(options.count, options.seed)
        started = time.monotonic()
        images = painter.draw([p.caption() for p in asked], options.seed)
        seconds = time.monotonic() - started
        print(
            json.dumps(
                {
                    "weights": Weights.load().metadata,
                    "file": PATH.stat().st_size,
                    "seconds": round(seconds, 1),
                }
            )
        )
        print(
            json.dumps(
                {
                    "prompts": len(asked),
                    "right": shares(asked, images),
                    "classifier": Classifier.load().metadata,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
