"""How the host's linear layers compute, for what is computed in one with them."""

from __future__ import annotations

from typing import Any

import comfy.ops
from torch import Tensor

from ....domaingallery_core.trainables.fused import COMPUTES, Product


def computed(layer: Any, x: Tensor, product: Product) -> Tensor:
    """Return what a layer makes of x (... in), with its weight cast for the call where the host casts it."""
    comfy.ops.run_every_op()
    if not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function):
        return product(x, layer.weight, layer.bias)
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    y = product(x, weight, bias)
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return y


for kind in (comfy.ops.disable_weight_init.Linear, comfy.ops.manual_cast.Linear):
    COMPUTES[kind] = computed
