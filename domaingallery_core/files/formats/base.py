"""What a format of LoRA files is: how it spells the names of tensors, and how it is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from ...errors import FileError, shown
from ...trainables.kinds import KINDS
from ...trainables.kinds.dora import MAGNITUDE
from ...trainables.kinds.lora import A, B
from ..layers import LayerNames, Parts, Place, joined

#: Every format by its name; a class of a format is in it once it is defined.
FORMATS: dict[str, type[Format]] = {}
#: How names in files of peft and diffusers, old and new, end besides, and what that is.
ENDINGS = {
    ".lora_A.default.weight": A,
    ".lora_B.default.weight": B,
    ".lora.down.weight": A,
    ".lora.up.weight": B,
    "_lora.down.weight": A,
    "_lora.up.weight": B,
    ".lora_linear_layer.down.weight": A,
    ".lora_linear_layer.up.weight": B,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
}


class Format:
    """Know one format: names out, names in.

    A name of the core is "<module>.<part>", such as "middle_block.1.proj_in.lora_A.weight".

    Attributes:
        name: what the node that saves calls it.
        prefix: how names in a file begin, one of several where there are several.
        help: a sentence for the node that saves.
        as_trained: whether it holds a layer as it was trained, and not as ComfyUI's loaders read it.
        kinds: of adapters that it has names for; None for all.
    """

    name: ClassVar[str]
    prefix: ClassVar[str | tuple[str, ...]]
    help: ClassVar[str]
    as_trained: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...] | None] = None

    def __init_subclass__(cls) -> None:
        FORMATS[cls.name] = cls

    def __init__(self, names: LayerNames | None = None) -> None:
        """Take what files call the layers of the model, where it is known."""
        self.names = names

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names of the format.

        Raises:
            FileError: one has none, or the format has no such kind.
        """
        raise NotImplementedError

    @classmethod
    def check_kind(cls, kind: str) -> None:
        """Raise FileError where the format has no names for a kind of adapter."""
        if cls.kinds is not None and kind not in cls.kinds:
            known = " or a ".join(KINDS[name].title for name in cls.kinds)
            raise FileError(
                f"Expected a {known} for the {cls.name} format, got a {KINDS[kind].title}, which it has no "
                "names for. Save in the kohya or the comfyui format."
            )

    def place(self, layer: str) -> Place | None:
        """Return where a layer of a file is in the model; None if it is not there."""
        return self.names.places.get(layer) if self.names is not None else None

    def from_file(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return tensors under the names of the core, and names of a file that are of no layer of the model.

        Raises:
            FileError: a layer that is several in the file cannot be joined.
        """
        layers: dict[str, dict[str, tuple[Place, dict[str, Tensor]]]] = {}
        ends, unknown = endings(), []
        for name, tensor in tensors.items():
            end = next((end for end in ends if name.endswith(end)), None)
            layer = name[: -len(end)] if end is not None else name
            place = self.place(layer) if end is not None else None
            if end is None or place is None:
                unknown.append(name)
            else:
                pieces = layers.setdefault(place.module, {})
                pieces.setdefault(layer, (place, {}))[1][ends[end]] = tensor
        found = {}
        for module, pieces in layers.items():
            parts = joined(list(pieces.values()))
            found |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        return found, unknown

    @classmethod
    def recognises(cls, names: Iterable[str]) -> bool:
        """Tell whether names are of this format."""
        return any(name.startswith(cls.prefix) for name in names)


def file_parts() -> dict[str, str]:
    """Return what a file may hold of a layer, of every kind, with the name that kohya's format has for it."""
    found = {"alpha": "alpha", "diff": "diff", "diff_b": "diff_b"}
    for kind in KINDS.values():
        found |= kind.parts | kind.filed
    return found


def endings() -> dict[str, str]:
    """Return how names in files of any program end, the longest first, and what part of a layer that is."""
    found = dict(ENDINGS)
    for part, kohya in file_parts().items():
        found |= {f".{part}": part, f".{kohya}": part}
    return dict(sorted(found.items(), key=lambda end: -len(end[0])))


def layers_of(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    """Return the parts of each module from names of the core.

    Raises:
        FileError: a name ends in no part of a kind that is known.
    """
    parts, found = file_parts(), {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.endswith(f".{part}")), None)
        if part is None:
            raise FileError(
                f"Expected names that end in one of {', '.join(parts)}, got {shown(name)}. "
                f"Use a {', '.join(kind.title for kind in KINDS.values())} of the diffusion model."
            )
        found.setdefault(name[: -len(part) - 1], {})[part] = tensor
    return found
