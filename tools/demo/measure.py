"""From pictures that the demo drew to the shares in its report."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MODES = ("none", "V-uncond", "VN-N")
LEAST = 64  # pictures in each share


@dataclass(frozen=True)
class Pictures:
    """Pictures of one scenario, and the category that each was asked for."""

    images: tuple[Image.Image, ...]
    asked: tuple[str, ...]

    @classmethod
    def from_png(cls, files: Sequence[bytes], asked: str) -> Pictures:
        images = tuple(Image.open(io.BytesIO(file)).convert("RGB") for file in files)
        return cls(images, (asked,) * len(images))

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(self.images + other.images, self.asked + other.asked)

    def only(self, *categories: str) -> Pictures:
        """Return the pictures that were asked for as one of these categories."""
        pairs = [pair for pair in zip(self.images, self.asked, strict=True) if pair[1] in categories]
        return Pictures(tuple(image for image, _ in pairs), tuple(asked for _, asked in pairs))

    def tensor(self) -> Tensor:
        """Return the pictures as a tensor, B 3 H W in 0..1."""
        arrays = np.stack([np.asarray(image) for image in self.images])
        return torch.from_numpy(arrays).movedim(-1, 1).float() / 255


@dataclass(frozen=True)
class Scenarios:
    """Everything that the report is measured on."""

    base: Pictures
    erased: Pictures
    intra: Pictures
    cross: dict[str, Pictures]  # by enhancement mode
    extra_attribute: Pictures
    subject: Pictures


def shares(
    scenarios: Scenarios, *, classify: Callable[[Tensor], Any], domain: str, taught: str
) -> dict[str, Any]:
    """Return the shares of the report.

    Args:
        classify: from images, B 3 H W in 0..1, to labels: lists `category`, `style`, `camouflage`, `olis`.
        domain: the style that was taught; `taught`: the category that it was taught with.

    Raises:
        ValueError: a share would rest on too few pictures.
    """
    s = scenarios
    others = s.erased.only(*{*s.erased.asked} - {taught})
    named = {
        "base": s.base, "erased": s.erased, "others": others, "intra": s.intra, "subject": s.subject,
        "extra_attribute": s.extra_attribute, **{f"cross {mode}": s.cross[mode] for mode in MODES},
    }  # fmt: skip
    for name, pictures in named.items():
        if len(pictures.images) < LEAST:
            raise ValueError(f"expected at least {LEAST} pictures of {name!r}, got {len(pictures.images)}")
    labels = {name: classify(pictures.tensor()) for name, pictures in named.items()}

    def camouflage(name: str) -> float:
        return share(labels[name].camouflage)

    def in_domain(name: str) -> float:
        return share([style == domain for style in labels[name].style])

    def right(name: str) -> float:
        return share([a == b for a, b in zip(labels[name].category, named[name].asked, strict=True)])

    def by_scenario(measure: Callable[[str], float]) -> dict[str, Any]:
        return {
            "intra": measure("intra"),
            "cross": {mode: measure(f"cross {mode}") for mode in MODES},
            "extra_attribute": measure("extra_attribute"),
            "subject": measure("subject"),
        }

    return {
        "prior_share": {
            "base": camouflage("base"),
            "erased": camouflage("erased"),
            "erased_other_categories": camouflage("others"),
        },
        "domain_share": by_scenario(in_domain),
        "category_share": {"base": right("base"), "erased": right("erased"), **by_scenario(right)},
        "subject_share": share(labels["subject"].olis),
    }


def share(hits: Sequence[bool]) -> float:
    """Return the share of hits, rounded for a report."""
    return round(sum(hits) / len(hits), 4)
