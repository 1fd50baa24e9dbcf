"""LoRA (arXiv 2106.09685): a product of two small matrices beside a weight, s B A."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import AdapterError
from .base import Kind, Parts, number, pattern, rank_and_alpha

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

    def is_plain(self) -> bool:
        return not self.use_dora and self.config.dropout == 0

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        if part == A:
            return torch.randn(shape, generator=generator) / self.config.rank
        return torch.zeros(shape)

    def fitted(self, parts: Parts, fresh: Parts) -> Parts:
        """Return the same s B A at this rank and scale: rows that A lacks are fresh, and B has 0 for them."""
        given = [parts[part] for part in (A, B) if part in parts]
        # Files may have the 1 x 1 kernels of what is a convolution elsewhere.
        flat = [t.flatten(1) if t.ndim > 2 and t.shape[2:].numel() == 1 else t for t in given]
        sizes = [fresh[A].shape[1], fresh[B].shape[0]]
        if [tensor.ndim for tensor in flat] != [2, 2] or [flat[0].shape[1], flat[1].shape[0]] != sizes:
            return parts
        a, b = flat
        if not 0 < len(a) == b.shape[1]:
            return parts
        rank, wanted = len(a), self.config.rank
        scale = number(parts["alpha"]) / rank if "alpha" in parts else 1.0
        factor = scale * wanted / self.config.alpha
        if rank > wanted:
            raise AdapterError(
                f"Expected a rank of at least {rank} to go on with this LoRA, got {wanted}. "
                "Raise the rank in Domain Training Options."
            )
        if rank < wanted:
            a = torch.cat([a.float(), fresh[A][rank:]])
            b = nn.functional.pad(b.float(), (0, wanted - rank))
        b = b if factor == 1 else b * factor
        return {**parts, A: a, B: b, "alpha": torch.tensor(float(self.config.alpha))}

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        return rank_and_alpha(tensors, A)
