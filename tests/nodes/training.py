"""The training nodes on a tiny MODEL, with inputs that a test may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.nodes.tiny import host_module, tiny_dataset, tiny_prompts

STEPS = 2


def execute(node: Any, nodes: Any, model: Any, **changes: Any) -> Any:
    """Run a training node as the host does, in inference mode."""
    inputs = {"prompts": tiny_prompts(nodes), "dataset": tiny_dataset(nodes), "steps": STEPS}
    with torch.inference_mode():
        return node.execute(model=model, **{**inputs, "learning_rate": 1e-3, "seed": 0, **changes})


def erase(nodes: Any, model: Any, **changes: Any) -> Any:
    """Run Erase Prior Attributes."""
    return execute(nodes("nodes.train.training").DomainGalleryErase, nodes, model, **changes)


def train(nodes: Any, model: Any, **changes: Any) -> Any:
    """Run Train Domain LoRA."""
    return execute(nodes("nodes.train.training").DomainGalleryTrain, nodes, model, **changes)


def personalize(nodes: Any, model: Any, **changes: Any) -> Any:
    """Run Train Personalized LoRA."""
    inputs = {"subject_prompts": subject_prompts(nodes), "subject_dataset": tiny_dataset(nodes, 6, seed=5)}
    node = nodes("nodes.train.personalization").DomainGalleryPersonalize
    return execute(node, nodes, model, **{**inputs, "subject_weight": 1.0, **changes})


def subject_prompts(nodes: Any, **changes: Any) -> Any:
    """Return DomainPrompts of a subject, with random embeddings."""
    return tiny_prompts(nodes, seed=10, **{"identifier": "olis", **changes})


def draw(nodes: Any, model: Any) -> Tensor:
    """Return a sample of a MODEL by the host's own sampler."""
    prompts = tiny_prompts(nodes)
    with torch.inference_mode():
        latents = torch.zeros(1, 4, 8, 8)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return host_module("comfy.sample").sample(
            model, noise, 2, 3.0, "euler", "normal", prompts.first.target, prompts.first.empty, latents,
            seed=0, disable_pbar=True,
        )  # fmt: skip
