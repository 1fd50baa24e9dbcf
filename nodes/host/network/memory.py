"""What a MODEL computes in while it is trained, and what it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....domaingallery_core.memory.blocks import Blocks, attribute
from ..families import family_of
from .casting import cast_anew
from .offloading import moved


@contextmanager
def gradient_checkpointing(
    model: ModelPatcher, setting: str, home: Sequence[nn.Module] = ()
) -> Iterator[Blocks]:
    """Return a context in which blocks of a MODEL may keep their input alone, and be computed again.

    Gradients are the same. "on" is for all blocks; with "automatic" none is, until a run chooses some.

    Args:
        home: blocks whose weights are in system memory. They come to the device while they are computed with,
            and are computed again in any case: autograd would hold what was moved.
    """
    blocks = Blocks(family_of(model).blocks(model.model.diffusion_model))
    own = {id(block) for block in home}
    blocks.always = frozenset(number for number, block in enumerate(blocks.modules) if id(block) in own)
    blocks.again = blocks.all if setting == "on" else blocks.always
    with moved(home, model.load_device), blocks.in_place():
        yield blocks


@dataclass(frozen=True, slots=True, eq=False)
class Computing:
    """Say what a MODEL computes in.

    Attributes:
        passed: tells whether a tensor is a copy of a weight, which is not kept for a backward pass.
    """

    dtype: torch.dtype
    passed: Callable[[Tensor], bool]


@contextmanager
def precision(model: ModelPatcher, wanted: str) -> Iterator[Computing]:
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
        yield Computing(dtype, stack.enter_context(cast_anew(base.diffusion_model, dtype)))


@contextmanager
def casts_weights(network: nn.Module) -> Iterator[None]:
    """Return a context in which the host's layers cast their weights to what they are given."""
    with ExitStack() as stack:
        for module in network.modules():
            if getattr(module, "comfy_cast_weights", None) is False:
                stack.enter_context(attribute(module, "comfy_cast_weights", True))
        yield
