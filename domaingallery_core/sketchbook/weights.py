"""The shipped weights of the sketchbook model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files.writing import read_tensors, save_tensors

PATH = Path(__file__).parent / "sketchbook.safetensors"
VOCABULARY = 49408


def read_shipped(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that comes with the pack.

    Raises:
        FileError: it is missing or damaged.
    """
    return read_tensors(path, what, "Install the pack again.")


def token_table(width: int) -> Tensor:
    """Return the vocabulary before training (49408, width): a random vector a word, the same everywhere."""
    return torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(49408)) * 0.05


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of the model, and how they were made.

    UNet and text encoder stand under their module names; `rows` are the trained rows of the vocabulary
    (index, weight).
    """

    unet: dict[str, Tensor]
    text: dict[str, Tensor]
    rows: tuple[Tensor, Tensor]
    metadata: dict[str, str]

    @classmethod
    def load(cls, path: Path = PATH) -> Weights:
        """Read the weights as float32.

        Raises:
            FileError: the file is missing or damaged.
        """
        tensors, metadata = read_shipped(path, "the demo model's weights")
        index = tensors.pop("rows.index")
        groups: dict[str, dict[str, Tensor]] = {"unet": {}, "text": {}, "rows": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = tensor.float()
        return cls(groups["unet"], groups["text"], (index.long(), groups["rows"]["weight"]), metadata)

    def save(self, path: Path = PATH) -> None:
        """Write the weights as float16."""
        tensors = {f"unet.{k}": v.half() for k, v in self.unet.items()} | {
            f"text.{k}": v.half() for k, v in self.text.items()
        }
        tensors |= {"rows.index": self.rows[0].int(), "rows.weight": self.rows[1].half()}
        save_tensors(path, tensors, self.metadata)
