"""The kinds of adapter that peft makes here: what each trains, how it begins, and what loaders read of it.

LoRA (arXiv 2106.09685), DoRA (2402.09353), LoHa (2108.06098) and LoKr (2212.10650).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, shown
from ..plan import AdapterConfig, AdapterKind

#: The name of the adapter inside peft's layers.
NAME = "domaingallery"

#: The trained parts of each kind, where a layer has them.
PARTS: dict[str, tuple[str, ...]] = {
    "lora": ("lora_A.weight", "lora_B.weight"),
    "dora": ("lora_A.weight", "lora_B.weight", "magnitude"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "lokr": ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
}
#: What the kinds are called in messages.
TITLES: dict[str, str] = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


def peft_config(config: AdapterConfig, modules: Iterable[str]) -> Any:
    """Return peft's configuration of a kind for modules, by name."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    targets = "|".join(map(re.escape, modules))
    if config.kind in ("lora", "dora"):
        return LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            use_dora=config.kind == "dora",
            target_modules=targets,
        )
    # Both drop rows of the weight that is added, and scale the others up.
    shared = {
        "r": config.rank,
        "alpha": config.alpha,
        "rank_dropout": config.dropout,
        "target_modules": targets,
    }
    return LoHaConfig(**shared) if config.kind == "loha" else LoKrConfig(**shared, rank_dropout_scale=True)


def parameters(layer: Any, kind: AdapterKind) -> dict[str, nn.Parameter]:
    """Return the trained parts of one of peft's layers."""
    found = {}
    for part in PARTS[kind]:
        owner, key = _slot(layer, part)
        if isinstance(owner, nn.Module) and key in owner._parameters:
            found[part] = owner._parameters[key]
    return found


def begin(
    layer: Any, config: AdapterConfig, base: nn.Linear, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Give one of peft's layers the weights to begin with, which add nothing, from a CPU generator.

    LoRA and DoRA: A ~ N(0, 1/rank), B = 0 (paper App. A); the others as peft has them.
    """
    for part, empty in parameters(layer, config.kind).items():
        if part == "lora_A.weight":
            value = torch.randn(empty.shape, generator=generator) / config.rank
        elif part == "magnitude":
            value = row_norms(base.weight)
        elif part in ("lora_B.weight", "hada_w2_b", "lokr_w1"):
            value = torch.zeros(empty.shape)
        else:
            value = nn.init.kaiming_uniform_(torch.empty(empty.shape), a=math.sqrt(5), generator=generator)
        owner, key = _slot(layer, part)
        owner._parameters[key] = nn.Parameter(value.to(device=base.weight.device, dtype=dtype))
    if is_full(layer, config.kind):
        layer.scaling[NAME] = 1.0


def is_full(layer: Any, kind: AdapterKind) -> bool:
    """Tell whether a LoKr is too small to be factored by rank; loaders give such a one no scale."""
    return kind == "lokr" and "lokr_w2" in parameters(layer, kind)


def _slot(layer: Any, part: str) -> tuple[Any, str]:
    """Return the module and the name under which a part is its parameter."""
    if part == "magnitude":
        return (layer.lora_magnitude_vector[NAME] if NAME in layer.lora_magnitude_vector else None), "weight"
    if part.endswith(".weight"):
        return getattr(layer, part.removesuffix(".weight"))[NAME], "weight"
    return getattr(layer, part), NAME


def row_norms(weight: Tensor) -> Tensor:
    """Return the L2 norm of each row of a weight (out in), in float32."""
    return torch.linalg.vector_norm(weight.detach().float(), dim=1)


def dora_scale(magnitude: Tensor, a: Tensor, b: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return what loaders call "dora_scale" (out 1) for a magnitude (out,).

    DoRA is magnitude * (W + s B A) / |W + s B A|. The host's loader divides by |W| instead.
    """
    merged = weight.detach().float() + scale * (b @ a)
    return (magnitude * _host_norms(weight) / row_norms(merged))[:, None]


def magnitude(dora_scale: Tensor, a: Tensor, b: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return the magnitude (out,) that `dora_scale` (out 1) stands for."""
    merged = weight.detach().float() + scale * (b @ a)
    return dora_scale[:, 0] * row_norms(merged) / _host_norms(weight)


def _host_norms(weight: Tensor) -> Tensor:
    return row_norms(weight) + torch.finfo(torch.float32).eps


def describe(names: Mapping[str, Tensor]) -> tuple[AdapterKind, int, float]:
    """Return kind, rank and alpha of an adapter from its tensors under "<module>.<part>".

    Raises:
        AdapterError: it is of no kind that is known here.
    """
    by_part = {"hada_w1_b": "loha", "lokr_w2_b": "lokr", "lora_A.weight": "lora", "lokr_w1": "lokr"}
    for part, kind in by_part.items():
        for name, tensor in names.items():
            if not name.endswith("." + part):
                continue
            module = name.removesuffix("." + part)
            if kind == "lora" and (f"{module}.dora_scale" in names or f"{module}.magnitude" in names):
                kind = "dora"
            alpha = names.get(f"{module}.alpha")
            # A LoKr that is nowhere factored has no rank but that which its alpha repeats.
            rank = 1 if tensor.ndim == 0 else tensor.shape[0]
            if part == "lokr_w1":
                rank = 1 if alpha is None else number(alpha)
            scale = rank if alpha is None else number(alpha)
            return kind, int(rank), float(scale)  # type: ignore[return-value]
    raise AdapterError(
        "Expected a LoRA made by Erase Prior Attributes, got one with names such as "
        f"{shown(next(iter(names), ''))}. Connect the lora output of that node."
    )


def number(alpha: Tensor) -> float:
    """Return an alpha, which is one finite number above 0.

    Raises:
        AdapterError: it is something else.
    """
    value = float(alpha) if alpha.numel() == 1 else math.nan
    if not 0 < value < 1e9:
        raise AdapterError(
            f"Expected a LoRA whose alpha is a number above 0, got {value:g}. Use another file."
        )
    return value
