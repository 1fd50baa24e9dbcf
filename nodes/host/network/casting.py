"""Weights that are cast for a call are cast again for the backward pass; autograd keeps no copy of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, slots=True, eq=False)
class _Cast:
    """Stand for a tensor that autograd keeps: the weight of a layer as a call had it, or a view of that."""

    layer: nn.Module
    dtype: torch.dtype
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def cast_anew(network: nn.Module, dtype: torch.dtype) -> Iterator[Callable[[Tensor], bool]]:
    """Return a context in which what is kept of a network's weights for a backward pass is the weights alone.

    The host casts the weights of a layer for each call, and autograd would keep each copy: a base in float16
    that computes in float32 would be kept once more, twice as large, for each time that it is evaluated. The
    context gives a function that tells whether a tensor is such a copy.

    Args:
        dtype: what the network computes in; where all weights are in it nothing is done.
    """
    # What is quantised has the dtype that it was made of.
    if all(type(w) in (Tensor, nn.Parameter) and w.dtype == dtype for w in network.parameters()):
        yield lambda tensor: False
        return
    cast, layers = comfy.ops.cast_bias_weight, WeakTensorKeyDictionary()

    def noted(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found = cast(layer, *args, **kwargs)
        if torch.is_grad_enabled() and type(found[0]) is Tensor:
            layers[found[0]] = layer
        return found

    def of(tensor: Tensor) -> nn.Module | None:
        return layers.get(tensor if tensor._base is None else tensor._base)

    def passed(tensor: Tensor) -> bool:
        return not tensor.requires_grad and of(tensor) is not None

    def pack(tensor: Tensor) -> Tensor | _Cast:
        layer = of(tensor)
        if layer is None or tensor.requires_grad:
            return tensor
        whole = tensor if tensor._base is None else tensor._base
        shape = tensor.size(), tensor.stride(), tensor.storage_offset()
        return _Cast(layer, whole.dtype, whole.device, *shape)

    def unpack(kept: Tensor | _Cast) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            weight = cast(kept.layer, dtype=kept.dtype, device=kept.device, bias_dtype=kept.dtype)[0]
        return weight.as_strided(kept.size, kept.stride, kept.offset)

    comfy.ops.cast_bias_weight = noted
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield passed
    finally:
        comfy.ops.cast_bias_weight = cast
