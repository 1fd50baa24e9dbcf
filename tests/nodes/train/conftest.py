"""What the tests of several trainings share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def demo(comfy: Any, nodes: Any) -> SimpleNamespace:
    """Return the demo's MODEL, CLIP and VAE, prompts of its words, and a dataset of noise for them."""
    sockets, examples = nodes("nodes.sockets"), nodes("domaingallery_core.data.examples").Examples
    with torch.inference_mode():
        model, clip, vae = nodes("nodes.demo.sketchbook").load_sketchbook()
        prompts = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(clip, "sks", "face")[0]
        noise = torch.randn(8, 24, 16, 16, generator=torch.Generator().manual_seed(0))
        part = sockets.LatentPart(source=examples(noise[:5]), target=examples(noise[5:]))
        dataset = sockets.LatentDataset((part,), vae)
    return SimpleNamespace(model=model, clip=clip, vae=vae, prompts=prompts, dataset=dataset, nodes=nodes)


@pytest.fixture
def small(nodes: Any) -> Any:
    """Return options for batches of three images."""
    return nodes("nodes.sockets").TrainingOptions(batch_size=3)
