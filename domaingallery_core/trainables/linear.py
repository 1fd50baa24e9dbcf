"""Linear layers in all but name: those of quantised models are no `nn.Linear`, which peft asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a Linear, or has what one has: numbers of features, and a weight (out in)."""
    if isinstance(module, nn.Linear):
        return True
    sizes = [getattr(module, name, None) for name in ("out_features", "in_features")]
    return (
        all(isinstance(size, int) for size in sizes)
        and [*getattr(getattr(module, "weight", None), "shape", ())] == sizes
    )


class StandIn(nn.Linear):
    """Stand in the place of a layer that is linear in all but name: the same weights, and its forward."""

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.training = layer.training
        # The very same, whoever swaps one; and no child, so that names stay those of the model.
        self.__dict__ |= {"_parameters": layer._parameters, "layer": layer}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.layer(x, *args, **kwargs)


def as_linear(layer: Any) -> nn.Linear:
    """Return a Linear that computes what a layer computes: itself, or one that stands in its place."""
    return layer if isinstance(layer, nn.Linear) else StandIn(layer)
