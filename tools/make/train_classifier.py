"""Train the classifier of the sketchbook's world on renders: python -m tools.make.train_classifier

Writes `domaingallery_core/sketchbook/classifier.safetensors` with its accuracy on held-out renders in the
metadata.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F

from domaingallery_core.files.writing import save_tensors
from domaingallery_core.sketchbook.classifier import HEADS, PATH, Classifier, Network
from domaingallery_core.sketchbook.world import Picture, render

COLOURED = ("plain", "pastel", "comic", "pixel")  # styles in which a colour can be seen
ALWAYS_COLOURED = ("house", "car", "fish")  # unnamed, these take a named colour anyway


def sample(rng: np.random.Generator) -> Picture:
    """Draw a picture of anything that the world has, domains, subject and prior included."""

    def pick(name: str, chance: float) -> str | None:
        return HEADS[name][rng.integers(1, len(HEADS[name]))] if rng.random() < chance else None

    olis = rng.random() < 0.08
    category = "face" if olis else HEADS["category"][rng.integers(6)]
    camouflage = not olis and rng.random() < 0.18
    coloured = not olis and not camouflage and (category in ALWAYS_COLOURED or rng.random() < 0.5)
    return Picture(
        category=category,
        colour=pick("colour", 1.0 if coloured else 0.0),
        accessory=pick("accessory", 0.4),
        place=pick("place", 0.5),
        style="plain" if rng.random() < 0.35 else HEADS["style"][rng.integers(len(HEADS["style"]))],
        camouflage=camouflage,
        olis=olis,
    )


def answers(picture: Picture) -> list[int]:
    """Return the index of the right answer for each head, -1 where the picture cannot show it."""
    hidden = {"colour": picture.style not in COLOURED or picture.camouflage or picture.olis}
    hidden["camouflage"] = picture.style in ("shadow", "pencil", "blueprint", "neon", "chalk")
    given = {
        "category": picture.category, "style": picture.style, "colour": picture.colour or "",
        "accessory": picture.accessory or "", "place": picture.place or "",
        "camouflage": "camouflage" if picture.camouflage else "", "olis": "olis" if picture.olis else "",
    }  # fmt: skip
    return [-1 if hidden.get(name) else HEADS[name].index(given[name]) for name in HEADS]


def renders(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `count` pictures (N 3 64 64, uint8) with their answers (N heads)."""
    rng = np.random.default_rng(seed)
    pictures = [sample(rng) for _ in range(count)]
    images = torch.from_numpy(np.stack([render(p, rng) for p in pictures])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([answers(p) for p in pictures])


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur images, shift their colours and add noise, for a model's pictures are not clean."""
    images = images.float() / 255
    b = len(images)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, soft, torch.rand(b, 1, 1, 1, generator=generator))
    images = images + 0.04 * torch.randn(b, 3, 1, 1, generator=generator)
    noise = 0.08 * torch.rand(b, 1, 1, 1, generator=generator)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def loss_of(logits: dict[str, torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    losses = [F.cross_entropy(logits[name], right[:, i], ignore_index=-1) for i, name in enumerate(HEADS)]
    return torch.stack(losses).sum()


def accuracy(network: Network, images: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Return the share of right answers by head."""
    with torch.no_grad():
        parts = [network(batch.float() / 255) for batch in images.split(200)]
    found = {}
    for i, name in enumerate(HEADS):
        best, known = torch.cat([part[name] for part in parts]).argmax(1), right[:, i] >= 0
        found[name] = round((best[known] == right[known, i]).float().mean().item(), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--images", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, right = renders(options.images, options.seed)
    held_out = renders(3000, options.seed + 1)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps)
    for step in range(options.steps):
        index = torch.randint(len(images), (96,), generator=generator)
        loss = loss_of(network(augment(images[index], generator)), right[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(
                f"step {step + 1}  loss {loss.item():.3f}  held out {accuracy(network, *held_out)}",
                flush=True,
            )
    found = accuracy(network.half().float().eval(), *held_out)
    metadata = {
        "accuracy": json.dumps(found),
        "steps": str(options.steps),
        "images": str(options.images),
        "seed": str(options.seed),
    }
    save_tensors(PATH, {k: v.half() for k, v in network.state_dict().items()}, metadata)
    print(Classifier.load().metadata["accuracy"])


if __name__ == "__main__":
    main()
