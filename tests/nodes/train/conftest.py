"""What the tests of several trainings share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.nodes.tiny import host_module, tiny_dataset, tiny_model


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


@pytest.fixture(scope="module")
def sdxl(comfy: Any, nodes: Any) -> SimpleNamespace:
    """Return a MODEL that reads what SDXL's text encoders give, and these with three layers each."""
    import comfy.sd
    import comfy.sdxl_clip

    three = {"num_hidden_layers": 3}
    target = SimpleNamespace(
        params={}, clip=comfy.sdxl_clip.SDXLClipModel, tokenizer=comfy.sdxl_clip.SDXLTokenizer
    )
    options = {"clip_l_model_config": three, "clip_g_model_config": three, "dtype": torch.float32}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, embedding_directory=[], model_options=options)
        for name, weight in clip.cond_stage_model.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        model = tiny_model(pooled=1280, context=2048)
        prompts = nodes("nodes.data.prompts").DomainGalleryPrompts.execute(clip, "sks", "dog")[0]
    return SimpleNamespace(model=model, clip=clip, prompts=prompts, nodes=nodes, dataset=tiny_dataset(nodes))


@pytest.fixture
def exact(demo: SimpleNamespace) -> SimpleNamespace:
    """Return the demo with its text encoder in float32, into which a LoRA is merged without rounding."""
    sketchbook, options = demo.nodes("nodes.demo.sketchbook"), {"dtype": torch.float32}
    with torch.inference_mode():
        target = sketchbook._ClipTarget()
        clip = host_module("comfy.sd").CLIP(target, embedding_directory=[], model_options=options)
        clip.cond_stage_model.load_state_dict(demo.clip.cond_stage_model.state_dict())
    return SimpleNamespace(**vars(demo) | {"clip": clip})
