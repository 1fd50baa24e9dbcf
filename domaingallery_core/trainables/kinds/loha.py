"""LoHa (arXiv 2108.06098): the elementwise product of two products of small matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Kind, pattern, rank_and_alpha, uniform


class Loha(Kind):
    """LoHa, begun as peft begins it, with w2_b = 0."""

    name, title = "loha", "LoHa"
    parts: ClassVar = {part: part for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    network = "lycoris.kohya"

    def peft_config(self, modules: Iterable[str]) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(  # it drops rows of what is added, and scales the others up
            r=self.config.rank,
            alpha=self.config.alpha,  # type: ignore[arg-type]
            rank_dropout=self.config.dropout,
            target_modules=pattern(modules),
        )

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        return torch.zeros(shape) if part == "hada_w2_b" else uniform(shape, generator)

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        return rank_and_alpha(tensors, "hada_w1_b")
