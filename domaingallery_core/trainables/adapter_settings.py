"""What can be set of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import Settings, setting
from .kinds import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings(Settings):
    """Shape an adapter (paper App. A: LoRA, rank 4, alpha 4, attention projections).

    Attributes:
        kind: a name in KINDS.
        targets: "attention", "attention+feedforward", "linear", or patterns of layer names.
    """

    rank: int = setting(4, "Rank of the LoRA. Higher can learn more and forget more.", least=1, most=1024)
    alpha: float = setting(
        4.0,
        "Scale of the LoRA, divided by the rank. Equal to the rank is the plain choice.",
        least=0.01, most=1e9, step=0.5,
    )  # fmt: skip
    targets: str = setting(
        "attention",
        "Which layers learn: attention, attention+feedforward, linear, or patterns of layer names with "
        "commas between them, such as attn2.to_*. attention is the paper's.",
    )
    dropout: float = setting(
        0.0,
        "Share of the adapter that is left out at random in a step. The paper has 0.",
        most=0.99,
        step=0.05,
    )
    kind: str = setting(
        "lora",
        "What is trained. lora: the paper's. dora: LoRA and a magnitude for each output. loha, lokr: "
        "products that reach a higher rank with few weights. All load as LoRA files.",
        choices=KINDS, label="adapter",
    )  # fmt: skip
