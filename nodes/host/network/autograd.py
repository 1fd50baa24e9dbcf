"""What stands between the host's networks and a backward pass: they are written to draw."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy_kitchen
import comfy_kitchen.backends.eager.rope as plain_kernels
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

#: What networks compute in place, and the same anew.
IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "__iadd__": operator.add, "__isub__": operator.sub, "__imul__": operator.mul,
}  # fmt: skip
#: Fused kernels for the positions of tokens, which have no backward pass, and do have a plain form.
KERNELS = [
    name
    for name in comfy_kitchen.__all__
    if "rope" in name and not name.endswith("_") and hasattr(plain_kernels, name)
]


@contextmanager
def differentiable() -> Iterator[None]:
    """Return a context in which autograd gets through networks of the host.

    `a += b` makes a new tensor where a backward pass may read the old one; drawing, networks write over it,
    which saves memory. Fused kernels without a backward pass are computed plainly.
    """
    sums = {name: getattr(Tensor, name) for name in IN_PLACE}
    kernels = {name: getattr(comfy_kitchen, name) for name in KERNELS}
    try:
        for name, method in sums.items():
            setattr(Tensor, name, _anew(method, IN_PLACE[name]))
        for name in KERNELS:
            setattr(comfy_kitchen, name, getattr(plain_kernels, name))
        yield
    finally:
        for name, method in sums.items():
            setattr(Tensor, name, method)
        for name, kernel in kernels.items():
            setattr(comfy_kitchen, name, kernel)


def _anew(in_place: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(self: Tensor, other: Any) -> Tensor:
        learns = self.requires_grad or (isinstance(other, Tensor) and other.requires_grad)
        if learns and torch.is_grad_enabled():
            return plain(self, other).to(self.dtype)
        return in_place(self, other)

    return computed


def differentiable_attention(chosen: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Attend by torch's fused kernel: not every kernel that a host may have chosen has a backward pass.

    On a CPU it also trains 1.3 (256 tokens) to 2.7 times (4096) as fast as the host's default.
    """
    return attention_pytorch(*args, **kwargs)
