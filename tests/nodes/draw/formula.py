"""Eq. 6 written out on predictions that are made one by one, and what conditionings can carry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.nodes.draw.drawing import alone, patched, predict
from tests.nodes.tiny import host_module

CFG, STRENGTH = 3.0, 0.7
MODES = ["V-uncond", "VN-N"]


def close(found: Tensor, expected: Tensor) -> None:
    """Compare what is computed in batches of different sizes."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def base_of(prompts: Any, mode: str) -> Any:
    """Return the base that a mode takes of the prompts."""
    return {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]


def directions(model: Any, prompts: Any, **options: Any) -> dict[str, Tensor]:
    """Return what each mode adds for a strength of 1 at cfg 1."""
    t, n, v, u = (
        alone(model, getattr(prompts, name), **options) for name in ("target", "source", "bare", "empty")
    )
    return {"V-uncond": v - u, "VN-N": t - n}


def with_values(cond, **values):
    """Return a CONDITIONING with more in its dictionaries, as the host's nodes make it."""
    return host_module("node_helpers").conditioning_set_values(cond, values)


def compare(nodes, model, prompts, mode, positive=None, negative=None, base=None, *, sigma=2.0, **other):
    """Return what enhancement adds to the host's guidance, its formula, and the rows with and without it.

    `other` are the conditionings by which the formula's t, u and b are predicted, where they differ.
    """
    positive, negative = positive or prompts.target, negative or prompts.empty
    base = base or base_of(prompts, mode)
    stock, stock_rows = predict(model, positive, negative, cfg=CFG, sigma=sigma)
    enhanced = patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base)
    found, rows = predict(enhanced, positive, negative, cfg=CFG, sigma=sigma)
    b = alone(model, other.get("b", base), sigma=sigma)
    if mode == "V-uncond":
        term = b - alone(model, other.get("u", negative), sigma=sigma)
    else:
        term = alone(model, other.get("t", positive), sigma=sigma) - b
    return found - stock, CFG * STRENGTH * term, rows, stock_rows


def lora_hooks(strength=1.0, seed=3):
    """Return a LoRA as hooks, and the same as patches of a MODEL."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(64, 2, generator=generator), torch.randn(2, 16, generator=generator)
    state = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    hooks = host_module("comfy.hooks").create_hook_lora(state, strength, 0.0)

    def patch(model):
        return host_module("comfy.sd").load_lora_for_models(model, None, state, strength, 0.0)[0]

    return hooks, patch
