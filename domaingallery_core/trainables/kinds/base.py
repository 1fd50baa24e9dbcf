"""What a kind of adapter is: its weights in a layer of peft's, how they begin, and what files call them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ...errors import AdapterError, shown

#: The name of the adapter inside peft's layers.
NAME = "domaingallery"
#: Every kind by its name; a class of a kind is in it once it is defined.
KINDS: dict[str, type[Kind]] = {}

Parts = Mapping[str, Tensor]


class Shape(Protocol):
    """What a kind reads of the settings of an adapter."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...


class Kind:
    """Know one kind of adapter. A layer here is one of peft's around a Linear.

    Attributes:
        name: what settings call it.
        title: what messages call it.
        parts: the trained weights of a layer, where it has them, with their names in kohya's files.
        filed: what files have besides, in the same way.
        network: what kohya's metadata call it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    parts: ClassVar[dict[str, str]]
    filed: ClassVar[dict[str, str]] = {}
    network: ClassVar[str] = "networks.lora"

    def __init_subclass__(cls) -> None:
        KINDS[cls.name] = cls

    def __init__(self, config: Shape) -> None:
        self.config = config

    def peft_config(self, modules: Iterable[str]) -> Any:
        """Return peft's configuration for modules, by name."""
        raise NotImplementedError

    def first(self, part: str, shape: torch.Size, base: nn.Linear, generator: torch.Generator) -> Tensor:
        """Return what a part begins with, from a CPU generator; all parts together add nothing."""
        raise NotImplementedError

    def slot(self, layer: Any, part: str) -> tuple[Any, str]:
        """Return the module and the name under which a part is its parameter."""
        if part.endswith(".weight"):
            return getattr(layer, part.removesuffix(".weight"))[NAME], "weight"
        return getattr(layer, part), NAME

    def is_plain(self) -> bool:
        """Tell whether a layer adds s B A x, with peft's lora_A and lora_B, and does nothing else."""
        return False

    def alpha(self, layer: Any) -> float:
        """Return the alpha that a file has for a layer."""
        return float(self.config.alpha)

    def exported(self, parts: Parts, weight: Tensor) -> Parts:
        """Return the parts of a layer over a weight (out in) as loaders read them."""
        return parts

    def imported(self, parts: Parts, weight: Tensor) -> Parts:
        """Return the parts that `exported` described; those of another model are left as they are."""
        return parts

    def fitted(self, parts: Parts, fresh: Parts) -> Parts:
        """Return what another training gave a layer, perhaps with an "alpha", in the shape of this one.

        Those that cannot be changed are left as they are.

        Args:
            fresh: what the layer has to begin with.

        Raises:
            AdapterError: they are larger.
        """
        return parts

    @classmethod
    def described(cls, tensors: Mapping[str, Tensor]) -> tuple[int, float] | None:
        """Return rank and alpha of such an adapter from "<module>.<part>" -> tensor; None for other kinds."""
        raise NotImplementedError

    @classmethod
    def metadata(cls) -> dict[str, str]:
        """Return what a file says of the kind, in kohya's words."""
        return {"ss_network_module": cls.network, "ss_network_args": json.dumps({"algo": cls.name})}

    def parameters(self, layer: Any) -> dict[str, nn.Parameter]:
        """Return the trained parts of a layer."""
        found = {}
        for part in self.parts:
            owner, key = self.slot(layer, part)
            if isinstance(owner, nn.Module) and key in owner._parameters:
                found[part] = owner._parameters[key]
        return found

    def begin(self, layer: Any, base: nn.Linear, generator: torch.Generator, dtype: torch.dtype) -> None:
        """Give a layer the weights to begin with."""
        for part, empty in self.parameters(layer).items():
            value = self.first(part, empty.shape, base, generator)
            owner, key = self.slot(layer, part)
            owner._parameters[key] = nn.Parameter(value.to(device=base.weight.device, dtype=dtype))


def describe(tensors: Mapping[str, Tensor]) -> tuple[str, int, float]:
    """Return kind, rank and alpha of an adapter from its tensors under "<module>.<part>".

    Raises:
        AdapterError: it is of no kind that is known here.
    """
    for kind in sorted(KINDS.values(), key=lambda kind: -len(kind.mro())):  # one before what it derives from
        found = kind.described(tensors)
        if found is not None:
            return kind.name, *found
    raise AdapterError(
        f"Expected a {', '.join(kind.title for kind in KINDS.values())}, got one with names such as "
        f"{shown(next(iter(tensors), ''))}. Connect another."
    )


def rank_and_alpha(tensors: Mapping[str, Tensor], part: str) -> tuple[int, float] | None:
    """Return the largest first dimension of the parts of a name, and its alpha; None where there is none."""
    found = {name: t.shape[0] if t.ndim else 1 for name, t in tensors.items() if name.endswith(f".{part}")}
    if not found:
        return None
    name = max(found, key=lambda name: found[name])
    alpha = tensors.get(f"{name.removesuffix(part)}alpha")
    return found[name], float(found[name]) if alpha is None else number(alpha)


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


def pattern(modules: Iterable[str]) -> str:
    """Return the expression by which peft finds modules of these names, and no others."""
    return "|".join(map(re.escape, modules))


def uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return weights drawn as torch draws those of a Linear."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)
