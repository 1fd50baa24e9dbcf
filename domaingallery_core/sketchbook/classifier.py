"""A small classifier of the sketchbook's world: what a picture shows, for measuring what a model draws.

It is trained on renders (tools/make/train_classifier.py) and never on a model's pictures; its accuracy on
renders that it has not seen stands in the file's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from .places import PLACES
from .styles import DOMAINS, STYLES
from .things import ACCESSORIES, CATEGORIES, COLOURS
from .weights import read_shipped

PATH = Path(__file__).parent / "classifier.safetensors"
HEADS: dict[str, list[str]] = {
    "category": list(CATEGORIES),
    "style": [*STYLES, *DOMAINS],
    "camouflage": ["", "camouflage"],
    "olis": ["", "olis"],
    "colour": ["", *COLOURS],
    "accessory": ["", *ACCESSORIES],
    "place": ["", *PLACES],
}


@dataclass(frozen=True, slots=True)
class Labels:
    """What each of B pictures shows."""

    category: list[str]
    style: list[str]
    camouflage: list[bool]
    olis: list[bool]
    colour: list[str]
    accessory: list[str]
    place: list[str]


class Network(nn.Module):
    """Four strided convolutions, then one linear head a question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, groups=8), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(options)) for name, options in HEADS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head (B options) for images (B 3 64 64, 0..1)."""
        features = self.features(images * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}


class Classifier:
    """Tell what pictures of the sketchbook's world show."""

    def __init__(self, network: Network, metadata: dict[str, str]) -> None:
        self.network, self.metadata = network.eval(), metadata

    @classmethod
    def load(cls, path: Path = PATH) -> Classifier:
        """Read the classifier.

        Raises:
            FileError: the file is missing or damaged.
        """
        state, metadata = read_shipped(path, "the classifier")
        network = Network()
        network.load_state_dict(state)
        return cls(network, metadata)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Labels:
        """Classify images, B 3 64 64 in 0..1."""
        logits = [self.network(batch) for batch in images.float().split(64)]
        answer = {name: torch.cat([part[name] for part in logits]).argmax(dim=1).tolist() for name in HEADS}
        words = {name: [HEADS[name][i] for i in index] for name, index in answer.items()}
        camouflage, olis = ([bool(word) for word in words.pop(name)] for name in ("camouflage", "olis"))
        return Labels(camouflage=camouflage, olis=olis, **words)
