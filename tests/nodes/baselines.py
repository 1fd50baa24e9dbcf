"""Train Baseline on a MODEL, with inputs that a test may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.nodes.tiny import tiny_dataset, tiny_prompts

#: The inputs that each method has by itself.
FIELDS: dict[str, dict[str, Any]] = {
    "DreamBooth": {"prior_weight": 1.0, "copies": "float32"},
    "DreamBooth LoRA": {"prior_weight": 1.0},
    "DomainStudio": {
        "variant": "published", "prior_weight": 1.0, "image_similarity_weight": 100.0,
        "frequency_similarity_weight": 100.0, "frequency_weight": 0.1, "copies": "float32",
        "style_weight": 1.0,
    },
    "Textual Inversion": {"word": "face", "vectors": 2, "templates": "object"},
}  # fmt: skip
#: The inputs of the node itself.
NODE = ("prompts", "dataset", "seed", "options", "run_options")


def chosen(method: str, **changes: Any) -> dict[str, Any]:
    """Return a method with its fields, as the host gathers them."""
    return {"method": method, "steps": 4, "learning_rate": 1e-3, **FIELDS.get(method, {}), **changes}


def baseline(nodes: Any, model: Any, method: str, **changes: Any) -> Any:
    """Run Train Baseline as the host does; what is no input of the node is one of the method."""
    inputs = {"prompts": tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    own = {name: changes.pop(name) for name in [*changes] if name in NODE}
    node = nodes("nodes.train.baseline").DomainGalleryBaseline
    with torch.inference_mode():
        return node.execute(model=model, **{"seed": 0, **inputs, **own, "method": chosen(method, **changes)})


def load_lora(model: Any, lora: Any) -> Any:
    """Return a MODEL that the stock node puts a LORA_MODEL on."""
    import comfy_extras.nodes_train

    with torch.inference_mode():
        return comfy_extras.nodes_train.LoraModelLoader.execute(model, lora, 1.0)[0]


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, to compare with later."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def on_demo(demo: Any, method: str, **changes: Any) -> Any:
    """Run Train Baseline on the demo for two steps."""
    inputs = {"prompts": demo.prompts, "dataset": demo.dataset, "steps": 2}
    if method == "Textual Inversion":
        inputs["clip"] = demo.clip
    return baseline(demo.nodes, demo.model, method, **inputs | changes)


def encoded(clip: Any, text: str) -> Tensor:
    """Return what the host encodes a text to."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
