"""In a real host: a checkpoint without a text encoder, and a LoRA of another family; a sentence each."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.nodes.test_real_host import drawn, graph, node, plain_drawing
from tests.nodes.thin_models import write_model
from tools.host.client import PromptError


def test_a_checkpoint_without_a_text_encoder_is_told_where_its_prompts_would_be_made(comfy, host):
    path = write_model(host.base / "models" / "checkpoints", "flux")
    prompt = graph() | {"demo": node("CheckpointLoaderSimple", ckpt_name=path.name)}

    try:
        with pytest.raises(PromptError, match=r"node words.*text encoder, got nothing\. If it is from a ch"):
            host.client.run(prompt, timeout=200)
    finally:
        host.client.free()
        path.unlink()


def test_a_lora_of_another_family_is_refused_and_the_model_draws_as_before(host):
    before = drawn(host.client, host.client.run(plain_drawing()))
    folder = host.output / "loras"
    folder.mkdir(exist_ok=True)
    layer = "transformer.transformer_blocks.0.attn.to_q.lora_"
    tensors = {f"{layer}A.weight": torch.ones(2, 64), f"{layer}B.weight": torch.ones(64, 2)}
    save_file(tensors, folder / "of_flux.safetensors")
    prompt = graph() | {"file": node("DomainGalleryLoadLora", lora_name="of_flux.safetensors")}
    prompt["train"]["inputs"]["erased"] = ["file", 0]

    with pytest.raises(PromptError, match=r"node train.*got 2 names that it does not have, such as 'transf"):
        host.client.run(prompt)

    again = plain_drawing()
    again["draw"]["inputs"]["denoise"] = 0.99999  # means the same to the host, and is drawn anew
    assert drawn(host.client, host.client.run(again)) == before
