"""What a MODEL computes in while it is trained, and what it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..families import family_of
from .casting import cast_anew

#: Networks with at least so many weights are trained with gradient checkpointing unless told otherwise.
LARGE = 100_000_000


@contextmanager
def gradient_checkpointing(model: ModelPatcher, setting: str, *, draws: bool = True) -> Iterator[None]:
    """Return a context in which each block keeps its input alone and is computed again in the backward pass.

    Gradients are the same. "automatic" is on for networks with at least LARGE weights.

    Args:
        draws: whether a block draws random numbers, which are kept to be drawn again.
    """
    network = model.model.diffusion_model
    large = sum(parameter.numel() for parameter in network.parameters()) >= LARGE
    if setting == "off" or (setting == "automatic" and not large):
        yield
        return
    with ExitStack() as stack:
        for block in family_of(model).blocks(network):
            stack.enter_context(attribute(block, "forward", _checkpointed(block.forward, draws)))
        yield


def _checkpointed(forward: Callable[..., Any], draws: bool) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # The host changes these options as it goes from block to block.
        kwargs = {name: dict(v) if isinstance(v, dict) else v for name, v in kwargs.items()}
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

    return run


@contextmanager
def precision(model: ModelPatcher, wanted: str) -> Iterator[torch.dtype]:
    """Return a context in which a MODEL computes in a dtype: "float32", "bfloat16" or what suits it.

    "automatic" is what the host computes in, but never float16, whose gradients overflow: that becomes
    bfloat16 where the device has it, and float32 elsewhere. Weights stay as they are and are cast as needed.
    """
    base = model.model
    dtype = base.get_dtype_inference()
    if wanted != "automatic":
        dtype = getattr(torch, wanted)
    elif dtype == torch.float16:
        fast = comfy.model_management.should_use_bf16(model.load_device)
        dtype = torch.bfloat16 if fast else torch.float32
    with ExitStack() as stack:
        if dtype != base.get_dtype_inference():
            stack.enter_context(attribute(base, "manual_cast_dtype", dtype))
            stack.enter_context(casts_weights(base.diffusion_model))
        stack.enter_context(cast_anew(base.diffusion_model, dtype))
        yield dtype


@contextmanager
def casts_weights(network: nn.Module) -> Iterator[None]:
    """Return a context in which the host's layers cast their weights to what they are given."""
    with ExitStack() as stack:
        for module in network.modules():
            if getattr(module, "comfy_cast_weights", None) is False:
                stack.enter_context(attribute(module, "comfy_cast_weights", True))
        yield


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Return a context in which one object has an attribute; what it had comes back, also if it had none."""
    had, before = name in owner.__dict__, owner.__dict__.get(name)
    try:
        owner.__dict__[name] = value
        yield
    finally:
        if had:
            owner.__dict__[name] = before
        else:
            owner.__dict__.pop(name, None)
