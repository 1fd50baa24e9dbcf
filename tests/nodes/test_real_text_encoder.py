"""A LoRA on model and text encoder of an SD1.x checkpoint, in a real host process, by the stock nodes."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from tests.nodes.test_real_host import Prompt, drawn, node
from tests.nodes.thin import write_checkpoint

SIDE = 64


def training(path) -> Prompt:
    """Return a training of both on what the model draws itself, and a file of it."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=path.name),
        "words": node("DomainGalleryPrompts", clip=["checkpoint", 1], identifier="sks", category="face"),
        "sources": node(
            "DomainGallerySourceImages", model=["checkpoint", 0], vae=["checkpoint", 2], prompts=["words", 0],
            count=3, width=SIDE, height=SIDE, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
            batch_size=3, seed=0,
        ),
        "dataset": node(
            "DomainGalleryDataset", vae=["checkpoint", 2], source_images=["sources", 0],
            target_images=["sources", 1],
        ),
        "train": node(
            "DomainGalleryTrain", model=["checkpoint", 0], prompts=["words", 0], dataset=["dataset", 0],
            steps=3, learning_rate=1e-2, seed=0, options=["options", 0], text_encoder=["checkpoint", 1],
        ),
        "options": node(
            "DomainGalleryOptions", rank=2, alpha=2.0, batch_size=2, prior_weight=1.0,
            disentanglement_weight=10.0, erasure_weight=0.0, similarity_weight=0.0, denoise_steps=1,
            offset_noise=0.0, text_encoder_rate=5e-3,
        ),
        "save": node("DomainGallerySaveLora", lora=["train", 0], name="tests/both", key_format="kohya"),
    }  # fmt: skip


def drawing(path, lora=None, strength_clip=0.0, *, text="a sks face", denoise=1.0) -> Prompt:
    """Return a drawing by the host's nodes, with a file on the model and, at a strength, the text encoder."""
    prompt = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=path.name)}
    taught = "checkpoint"
    if lora is not None:
        taught = "taught"
        prompt["taught"] = node(
            "LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name=lora, strength_model=0.0,
            strength_clip=strength_clip,
        )  # fmt: skip
    return prompt | {
        "text": node("CLIPTextEncode", clip=[taught, 1], text=text),
        "empty": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "draw": node(
            "KSampler", model=[taught, 0], positive=["text", 0], negative=["text", 0],
            latent_image=["empty", 0], seed=0, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal",
            denoise=denoise,
        ),
        "decode": node("VAEDecode", samples=["draw", 0], vae=["checkpoint", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


@pytest.mark.timeout(600)
def test_it_trains_saves_and_loads_onto_both_and_the_checkpoint_is_as_it_was(comfy, host):
    path = write_checkpoint(host.base / "models" / "checkpoints", "sd1", reads=True)
    try:
        before = drawn(host.client, host.client.run(drawing(path), timeout=300))
        outputs = host.client.run(training(path), timeout=300)
        # Other words of the same tokens and another number of the same meaning, so that it is drawn anew.
        after = drawn(
            host.client, host.client.run(drawing(path, text="a sks face ", denoise=0.99999), timeout=300)
        )
        file = outputs["save"]["loras"][0]
        name = f"{file['subfolder'].removeprefix('loras/')}/{file['filename']}"
        logged = host.log.stat().st_size
        loaded = [
            drawn(host.client, host.client.run(drawing(path, name, strength), timeout=300))
            for strength in (0.0, 1.0)
        ]
    finally:
        host.client.free()
        path.unlink()

    with safe_open(host.output / file["subfolder"] / file["filename"], framework="pt") as lora:
        names, metadata = set(lora.keys()), lora.metadata()
    assert "lora_te_text_model_encoder_layers_11_self_attn_out_proj.lora_up.weight" in names
    assert sum(name.startswith("lora_te_text_model_") for name in names) == 12 * 4 * 3
    layers = len(names) // 3
    assert f"{layers} of {layers} layers found in the model" in outputs["save"]["text"][0]
    assert metadata["ss_text_encoder_lr"] == "0.005"
    assert "lora key not loaded" not in host.log.read_bytes()[logged:].decode(errors="replace")
    assert before == after == loaded[0] and loaded[1] != loaded[0]
