"""A thin SD3 of the host's own classes that draws the sketchbook's world.

It reads and writes the demo model's latents and reads its text encoder, tokens and pooled, so both models
share everything but the network and what it predicts: here a flow.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tools.host.load_pack import load_pack


class Size(NamedTuple):
    """How large the network is; a head is 64 wide in the host's class."""

    heads: int
    blocks: int

    def network(self, channels: int, text: int) -> dict[str, Any]:
        """Return the host's configuration of it."""
        return {
            "in_channels": channels, "out_channels": channels, "patch_size": 2, "depth": self.heads,
            "num_blocks": self.blocks, "input_size": None, "num_patches": None, "qk_norm": "rms",
            "adm_in_channels": text, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": text, "out_features": 64 * self.heads},
            },
        }  # fmt: skip


FULL, THIN = Size(heads=3, blocks=4), Size(heads=1, blocks=2)


def demo(host: Path) -> ModuleType:
    """Import the host and the pack; return the module that builds the demo model."""
    return sys.modules[f"{load_pack(host).__name__}.nodes.demo.sketchbook"]


def build_flow(sketchbook: ModuleType, size: Size) -> Any:
    """Return the host's BaseModel, its weights uninitialised; at 64 x 64 its noise needs no shift."""
    models = importlib.import_module("comfy.supported_models")

    class Config(models.SD3):
        latent_format = sketchbook.SketchbookLatents
        sampling_settings = {"shift": 1.0}  # noqa: RUF012

    config = Config(size.network(sketchbook.CHANNELS, sketchbook.TEXT_WIDTH))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, device=torch.device("cpu"))


def load_flow(sketchbook: ModuleType, size: Size, weights: dict[str, Tensor]) -> Any:
    """Return a MODEL with these weights."""
    management, patcher = (
        importlib.import_module(f"comfy.{name}") for name in ("model_management", "model_patcher")
    )
    with torch.inference_mode():
        base = build_flow(sketchbook, size)
        base.diffusion_model.load_state_dict(weights)
    device = management.get_torch_device()
    return patcher.CoreModelPatcher(base, load_device=device, offload_device=management.unet_offload_device())
