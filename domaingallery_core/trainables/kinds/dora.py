"""DoRA (arXiv 2402.09353): a LoRA, and a magnitude for each output: m (W + s B A) / |W + s B A|."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import NAME, Parts
from .lora import A, B, Lora

MAGNITUDE, SCALE = "magnitude", "dora_scale"


class Dora(Lora):
    """DoRA; files hold a "dora_scale", for loaders that divide by |W| and not by |W + s B A|."""

    name, title = "dora", "DoRA"
    parts: ClassVar = {**Lora.parts, MAGNITUDE: MAGNITUDE}
    filed: ClassVar = {SCALE: SCALE}
    use_dora = True

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        return row_norms(base.weight) if part == MAGNITUDE else super().first(part, shape, base, generator)

    def slot(self, layer: Any, part: str) -> tuple[Any, str]:
        if part != MAGNITUDE:
            return super().slot(layer, part)
        vectors = layer.lora_magnitude_vector
        return (vectors[NAME] if NAME in vectors else None), "weight"

    def exported(self, parts: Parts, weight: Tensor) -> Parts:
        """Return "dora_scale" (out 1) for a magnitude (out,)."""
        return self._renamed(parts, weight, MAGNITUDE, SCALE)

    def imported(self, parts: Parts, weight: Tensor) -> Parts:
        """Return the magnitude (out,) for a "dora_scale" (out 1); as before but for rounding."""
        return self._renamed(parts, weight, SCALE, MAGNITUDE)

    def _renamed(self, parts: Parts, weight: Tensor, part: str, new: str) -> Parts:
        given = [parts[name].to(weight.device) for name in (part, A, B) if name in parts]
        fits = len(given) == 3 and [tensor.ndim for tensor in given[1:]] == [2, 2]
        if not fits or (len(given[2]), given[1].shape[1]) != tuple(weight.shape):
            return parts
        value, a, b = given
        if value.numel() != len(b):
            return parts
        merged = row_norms(weight.detach().float() + self.config.alpha / self.config.rank * (b @ a))
        of_loader = row_norms(weight) + torch.finfo(torch.float32).eps
        value = value.flatten()
        value = (value * of_loader / merged)[:, None] if new == SCALE else value * merged / of_loader
        return {name: tensor for name, tensor in parts.items() if name != part} | {new: value.cpu()}

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        magnitudes = any(name.endswith((f".{MAGNITUDE}", f".{SCALE}")) for name in tensors)
        return super().described(tensors) if magnitudes else None


def row_norms(weight: Tensor) -> Tensor:
    """Return the L2 norm of each row of a weight (out in), in float32."""
    return torch.linalg.vector_norm(weight.detach().float(), dim=1)
