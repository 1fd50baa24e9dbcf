"""LoKr (arXiv 2212.10650): a Kronecker product of two matrices, the second factored where it is large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import NAME, Kind, number, pattern, rank_and_alpha, uniform


class Lokr(Kind):
    """LoKr, begun as peft begins it, with w1 = 0. One that is nowhere factored has no scale for loaders."""

    name, title = "lokr", "LoKr"
    parts: ClassVar = {part: part for part in ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")}
    network = "lycoris.kohya"

    def peft_config(self, modules: Iterable[str]) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(
            r=self.config.rank,
            alpha=self.config.alpha,  # type: ignore[arg-type]
            rank_dropout=self.config.dropout,
            rank_dropout_scale=True,
            target_modules=pattern(modules),
        )

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape) if part == "lokr_w1" else uniform(shape, generator)

    def begin(self, layer: Any, base: nn.Linear, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().begin(layer, base, generator, dtype)
        if self._is_full(layer):
            layer.scaling[NAME] = 1.0

    def alpha(self, layer: Any) -> float:
        return float(self.config.rank if self._is_full(layer) else self.config.alpha)

    def _is_full(self, layer: Any) -> bool:
        return "lokr_w2" in self.parameters(layer)

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        factored = rank_and_alpha(tensors, "lokr_w2_b")
        if factored is not None:
            return factored
        for name in tensors:
            if name.endswith(".lokr_w1"):  # it has no rank but that which its alpha repeats
                alpha = tensors.get(f"{name.removesuffix('lokr_w1')}alpha")
                rank = 1 if alpha is None else number(alpha)
                return int(rank), float(rank)
        return None
