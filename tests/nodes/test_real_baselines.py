"""Train Baseline in a real host process: each method, and a drawing with what it made by the stock nodes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nodes.test_real_host import Prompt, drawn, graph, node
from tools.host.client import PromptError

#: The fields of each method beside its length, as a browser sends them.
METHODS: dict[str, dict[str, Any]] = {
    "DreamBooth": {"prior_weight": 1.0, "copies": "float32"},
    "DreamBooth LoRA": {"prior_weight": 0.0},
    "DomainStudio": {
        "variant": "published", "prior_weight": 1.0, "image_similarity_weight": 100.0,
        "frequency_similarity_weight": 100.0, "frequency_weight": 0.1, "style_weight": 1.0,
    },
    "Textual Inversion": {"clip": ["demo", 1], "word": "", "vectors": 2, "templates": "object"},
}  # fmt: skip


def data() -> Prompt:
    """Return what every training reads."""
    return {name: graph()[name] for name in ("demo", "words", "source", "target", "dataset", "options")}


def drawing(text: Any, model: Any) -> Prompt:
    """Return nodes of the host that draw a text with a MODEL."""
    return {
        "text": node("CLIPTextEncode", clip=["demo", 1], text=text),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "draw": node(
            "KSampler", model=model, positive=["text", 0], negative=["words", 4], latent_image=["empty", 0],
            seed=0, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["draw", 0], vae=["demo", 2]),
        "show": node("PreviewImage", images=["decode", 0]),
    }  # fmt: skip


def trained(method: str) -> Prompt:
    """Return the nodes of a training, and of a drawing with what it made."""
    fields = METHODS[method] | {"steps": 3, "learning_rate": 1e-2}
    own = {f"method.{name}": value for name, value in fields.items()}
    prompt = data() | {
        "train": node(
            "DomainGalleryBaseline", model=["demo", 0], prompts=["words", 0], dataset=["dataset", 0], seed=0,
            options=["options", 0], method=method, **own,
        )
    }  # fmt: skip
    if method != "Textual Inversion":
        apply = node(
            "LoraModelLoader", model=["demo", 0], lora=["train", 0], strength_model=1.0, bypass=False
        )
        return prompt | {"apply": apply} | drawing("a sks face", ["apply", 0])
    prompt["save"] = node("DomainGallerySaveEmbedding", embedding=["train", 4], name="tests/word")
    prompt["join"] = node("StringConcatenate", string_a="a photo of a", string_b=["save", 0], delimiter=" ")
    return prompt | drawing(["join", 0], ["demo", 0])


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_and_what_it_made_draws_by_the_stock_nodes(host, method):
    text = "a photo of a face face" if method == "Textual Inversion" else "a sks face"
    plain = {name: data()[name] for name in ("demo", "words")} | drawing(text, ["demo", 0])

    outputs = host.client.run(trained(method))

    losses = outputs["train"]["losses"][0]
    assert {"target", "total"} <= losses.keys() and len(losses["total"]) == 3
    assert ("prior" in losses) == bool(METHODS[method].get("prior_weight"))
    assert drawn(host.client, outputs) != drawn(host.client, host.client.run(plain))


def test_a_new_word_without_a_text_encoder_is_refused_before_anything_is_drawn(host):
    prompt = trained("Textual Inversion")
    prompt["source"]["inputs"]["seed"] = 987_655  # of no other test
    del prompt["train"]["inputs"]["method.clip"]
    worked = []

    with pytest.raises(PromptError, match=r"^node source.*Expected the text encoder of the model"):
        host.client.run(prompt, on_event=lambda event: worked.append(event.kind == "progress"))
    assert not any(worked)
