"""Flux and SD3 small enough for tests, of the host's own classes: layers that are several in diffusers."""

from __future__ import annotations

import importlib
from typing import Any

import torch

WIDTH, HEADS, AXES, TEXT, POOLED = 64, 2, (8, 12, 12), 16, 8
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": WIDTH,
    "num_heads": HEADS, "axes_dim": list(AXES), "mlp_ratio": 4.0, "theta": 10000, "depth": 2,
    "depth_single_blocks": 2, "qkv_bias": True, "context_in_dim": TEXT, "vec_in_dim": POOLED,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
SD3 = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "input_size": None,
    "adm_in_channels": POOLED, "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms",
    "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [0],
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}
    },
}  # fmt: skip


def transformer(config: str, network: dict[str, Any], device: str = "cpu") -> Any:
    """Return the host's BaseModel for a class in its `supported_models`."""
    settings = getattr(importlib.import_module("comfy.supported_models"), config)(dict(network))
    settings.set_inference_dtype(torch.float32, None)
    with torch.device(device):
        return settings.get_model({}, device=torch.device(device))


def tiny_transformer(config: str, network: dict[str, Any], seed: int = 0) -> Any:
    """Return a MODEL of a class in the host's `supported_models`, with random weights."""
    patcher, memory = (
        importlib.import_module(f"comfy.{name}") for name in ("model_patcher", "model_management")
    )
    with torch.inference_mode():
        model = transformer(config, network)
        generator = torch.Generator().manual_seed(seed)
        network = model.diffusion_model
        for name, weight in (*network.named_parameters(), *network.named_buffers()):
            scale = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
            centre = (
                1.0 if name.endswith(("norm.scale", "norm.weight", "ln_q.weight", "ln_k.weight")) else 0.0
            )
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale * 0.5 + centre)
    device = memory.get_torch_device()
    return patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def tiny_flux() -> Any:
    """Return a MODEL of Flux."""
    return tiny_transformer("Flux", FLUX)


def tiny_sd3() -> Any:
    """Return a MODEL of SD3."""
    return tiny_transformer("SD3", SD3)
