"""A text encoder that learns beside a MODEL: which of its layers, and what files of LoRAs call them."""

from __future__ import annotations

from typing import Any

import comfy.lora

from ...domaingallery_core.files.formats.comfyui import TEXT
from ...domaingallery_core.files.layers import LayerNames, Place
from .new_words import encoders_of

_LAYER = "*.encoder.layers.*."
_ATTENTION = (f"{_LAYER}self_attn.[qkv]_proj", f"{_LAYER}self_attn.out_proj")
_ALL = (*_ATTENTION, f"{_LAYER}mlp.fc[12]")
#: Sets of layers that learn, as the families have them for their networks.
TARGETS = {"attention": _ATTENTION, "attention+feedforward": _ALL, "linear": _ALL}
WEIGHT = ".weight"


def key_map(clip: Any) -> dict[str, str]:
    """Return what the host's loaders know: name in a file -> weight."""
    return comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})


def text_names(clip: Any) -> LayerNames:
    """Return what files of each format call the layers of the text encoders of a CLIP.

    kohya's scripts number them where there are two, as do the names of diffusers.

    Raises:
        InputError: it has others than those of Stable Diffusion and SDXL.
    """
    beginnings = ("lora_te_",) if len(encoders_of(clip)) == 1 else ("lora_te1_", "lora_te2_")
    kohya, diffusers, places = {}, {}, {}
    for name, key in key_map(clip).items():
        module = f"{TEXT}{key.removesuffix(WEIGHT)}"
        places[name] = Place(module)
        if name.startswith(beginnings) and "_text_model_" in name:
            kohya[module] = name
        elif name.startswith(("text_encoder.", "text_encoder_2.")):
            diffusers[module] = (name,)
    return LayerNames(kohya, diffusers, places)
