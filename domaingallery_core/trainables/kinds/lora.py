"""LoRA (arXiv 2106.09685): a product of two small matrices beside a weight, s B A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Kind, pattern, rank_and_alpha

A, B = "lora_A.weight", "lora_B.weight"


class Lora(Kind):
    """LoRA, with A ~ N(0, 1/rank) and B = 0 (paper App. A)."""

    name, title = "lora", "LoRA"
    parts: ClassVar = {A: "lora_down.weight", B: "lora_up.weight"}
    use_dora = False

    def peft_config(self, modules: Iterable[str]) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,  # type: ignore[arg-type]
            lora_dropout=self.config.dropout,
            use_dora=self.use_dora,
            target_modules=pattern(modules),
        )

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        if part == A:
            return torch.randn(shape, generator=generator) / self.config.rank
        return torch.zeros(shape)

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        return rank_and_alpha(tensors, A)
