"""Other choices of what Eq. 4 reads of a transformer, and what they do to the domain."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from domaingallery_core.sketchbook.classifier import Classifier
from tools.demo.measure import MODES, Pictures, share
from tools.demo.scenarios import TAUGHT
from tools.make.workflow_parts import DOMAIN

from .method import Job, Lora

Read = Callable[[nn.Module], list[nn.Module]]


def _blocks(network: nn.Module) -> list[nn.Module]:
    return list(network.joint_blocks)


def _before(network: nn.Module) -> list[nn.Module]:
    """Return what gives the tokens that each block of the first half reads."""
    return [network.x_embedder, *_blocks(network)[: len(_blocks(network)) // 2 - 1]]


NONE = "none"
#: By name, what is read, in the order of evaluation; the first is the default.
CHOICES: dict[str, Read] = {
    "first half": lambda network: _blocks(network)[: len(_blocks(network)) // 2],
    "first half, before its blocks": _before,
    "second half": lambda network: _blocks(network)[len(_blocks(network)) // 2 :],
    "every other": lambda network: _blocks(network)[::2],
    "all": _blocks,
    "last of the first half": lambda network: _blocks(network)[len(_blocks(network)) // 2 - 1 :][:1],
}


@contextmanager
def reading(pack: str, choice: str) -> Iterator[None]:
    """Let the family of SD3 read something else; `pack` is the name of the pack as it was loaded."""
    family = sys.modules[f"{pack}.nodes.host.families.images"].StableDiffusion3
    family.read = lambda self, network: CHOICES[choice](network)
    try:
        yield
    finally:
        del family.read


def compare(job: Job, learned: tuple[Any, Any, Lora], choice: str) -> dict[str, Any]:
    """Repeat the second stage with a choice, or without Eq. 4 for "none"; return what comes of it.

    `variety` is how far apart faces of the domain are from each other, in the classifier's features (mean of
    1 - cosine), and `seconds` the time of the processor.
    """
    started = time.process_time()
    if choice == NONE:
        domain = job.finetune(*learned, weights={"similarity": 0.0})
    else:
        with reading(job.pack, choice):
            domain = job.finetune(*learned)
    seconds = time.process_time() - started
    classifier = Classifier.load()
    faces = job.draw(f"a sks {TAUGHT}", TAUGHT, job.least, [(domain, 1.0)])
    found: dict[str, Any] = {"seconds": round(seconds, 1), "variety": variety(classifier, faces)}
    found |= {"domain": in_domain(classifier, faces), "category": right(classifier, faces)}
    for mode in MODES:
        others = job.others(domain, mode)
        found[mode] = {"domain": in_domain(classifier, others), "category": right(classifier, others)}
    return found


def in_domain(classifier: Classifier, pictures: Pictures) -> float:
    """Return the share of pictures in the domain."""
    return share([style == DOMAIN for style in classifier.classify(pictures.tensor()).style])


def right(classifier: Classifier, pictures: Pictures) -> float:
    """Return the share of pictures of the category that was asked for."""
    found = classifier.classify(pictures.tensor()).category
    return share([a == b for a, b in zip(found, pictures.asked, strict=True)])


@torch.no_grad()
def variety(classifier: Classifier, pictures: Pictures) -> float:
    """Return the mean of 1 - cosine over pairs of pictures."""
    features: Tensor = classifier.network.features(pictures.tensor() * 2 - 1)
    features = torch.nn.functional.normalize(features, dim=1)
    count = len(features)
    return round(1 - ((features @ features.T).sum().item() - count) / (count * (count - 1)), 4)
