"""A Linear and the LoRA beside it as one operation, y = W x + b + s B A x, and the switch of an adapter.

peft computes the two one after the other: it goes over what the layer gave again and again, and keeps what
it casts. Here B A x is added in place, or B A to the weight where that is less work, and what is kept for the
backward pass is x, besides what layer and adapter have anyway. Where a layer computes in less precision than
its adapter has, so does the adapter, as in mixed precision; what an optimizer moves stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

#: Computes y from x (... in), a weight (out in) and a bias (out), as `linear` does.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
#: How a layer of a class computes y: by a product that is given, with its weight as it is at that moment.
#: What layers of other classes do is not known, and left to them.
COMPUTES: dict[type[nn.Module], Callable[[Any, Tensor, Product], Tensor]] = {
    nn.Linear: lambda layer, x, product: product(x, layer.weight, layer.bias)
}
#: What is added to a weight costs about as much as this many products of few columns with it.
MERGING = 2


class Switch:
    """Say how often what is trained was switched off: 0 where it is on."""

    __slots__ = ("off",)

    def __init__(self) -> None:
        self.off = 0


def switched(layer: Any, switch: Switch) -> Callable[..., Tensor]:
    """Return the forward of a layer of peft's, that is the base layer where a switch is off."""
    adapted = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (layer.get_base_layer() if switch.off else adapted)(x, *args, **kwargs)

    return forward


def fused(layer: Any, switch: Switch, name: str) -> Callable[..., Tensor]:
    """Return the forward of a layer of peft's that has a plain LoRA of a name; peft's own where more is done.

    That is: other adapters in the layer, a base layer with hooks, with a forward of its own, or of a class
    that is not in COMPUTES, a base that learns, autocast, and what is being compiled.
    """
    adapted, base, scale = switched(layer, switch), layer.get_base_layer(), float(layer.scaling[name])
    compute = COMPUTES.get(type(base))
    if compute is None:
        return adapted
    a, b, alone = layer.lora_A[name], layer.lora_B[name], [name]

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up = a.weight, b.weight
        if not torch.is_grad_enabled():
            return _forward(x, weight, bias, down, up, scale)
        return _LinearWithLora.apply(x, weight, bias, down, up, scale)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = (
            not (torch.compiler.is_compiling() or switch.off or args or kwargs)
            and not (layer.disable_adapters or layer.merged)
            and layer.active_adapters == alone
            and _is_plain(base)
            and not (_has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type))
        )
        return compute(base, x, product) if plain else adapted(x, *args, **kwargs)

    return forward


@cache
def _has_autocast(device: str) -> bool:
    """Tell whether a kind of device has it, as "meta" has not."""
    return torch.amp.is_autocast_available(device)


def _is_plain(base: nn.Module) -> bool:
    """Tell whether a layer does what its class does, and learns nothing."""
    own = base.__dict__
    return not (
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or any(weight is not None and weight.requires_grad for weight in own["_parameters"].values())
    )


def _merges(x: Tensor, weight: Tensor, a: Tensor) -> bool:
    """Tell whether s B A is better added to the weight; only where that has the precision of the adapter."""
    out, width = weight.shape
    rows = x.numel() // width
    return x.dtype == weight.dtype == a.dtype and rows * (width + out) > MERGING * width * out


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return y (... out) for x (... in), weight (out in), A (r in) and B (out r)."""
    if _merges(x, weight, a):
        return linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
    rows = x.reshape(-1, x.shape[-1])  # n in
    y = linear(rows, weight, bias)
    a, b = a.to(y.dtype), b.to(y.dtype)
    return y.addmm_(linear(rows, a), b.t(), alpha=scale).view(*x.shape[:-1], -1)


class _LinearWithLora(torch.autograd.Function):
    """y = (W + s B A) x + b, whose weight is frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return _forward(x, weight, bias, a, b, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, master_a, master_b = ctx.saved_tensors
        a, b, scale = master_a.to(dy.dtype), master_b.to(dy.dtype), ctx.scale
        rows, d = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])  # n in, n out
        h, g = linear(rows, a), linear(d, b.t().contiguous())  # n r
        dx = None
        if ctx.needs_input_grad[0]:
            if _merges(x, weight, master_a):
                dx = dy @ torch.addmm(weight, b, a, alpha=scale)
            else:
                dx = (d @ weight).addmm_(g, a, alpha=scale).view(x.shape)
        # Of the ways to write the four, a CPU takes the least time for those here, by a third.
        da, db = g.t() @ rows, (h.t() @ d).t()
        if scale != 1:
            da, db = da * scale, db * scale
        return dx, None, None, da.to(master_a.dtype), db.to(master_b.dtype), None
