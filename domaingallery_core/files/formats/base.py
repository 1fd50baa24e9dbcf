"""What a format of LoRA files is: how it spells the names of tensors, and how it is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from ...errors import FileError, shown
from ...trainables.kinds import KINDS

#: Every format by its name; a class of a format is in it once it is defined.
FORMATS: dict[str, type[Format]] = {}


class Format:
    """Know one format: names out, names in.

    A name of the core is "<module>.<part>", such as "middle_block.1.proj_in.lora_A.weight".

    Attributes:
        name: what the node that saves calls it.
        prefix: how every name in a file begins.
        help: a sentence for the node that saves.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    help: ClassVar[str]

    def __init_subclass__(cls) -> None:
        FORMATS[cls.name] = cls

    def __init__(self, modules: Mapping[str, str] | None = None) -> None:
        """Take module -> its name in a file, where the model decides that and not the format."""
        self.modules = modules

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names of the format.

        Raises:
            FileError: one has none.
        """
        raise NotImplementedError

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under the names of the core.

        Raises:
            FileError: one is of another format, or of another model.
        """
        raise NotImplementedError

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


def split(name: str) -> tuple[str, str]:
    """Split a name, of the core or of kohya, into its module and its part.

    Raises:
        FileError: it ends in no part of a kind that is known.
    """
    parts = file_parts()
    for part in (*parts, *parts.values()):
        if name.endswith(f".{part}"):
            return name[: -len(part) - 1], part
    raise FileError(
        f"Expected names that end in one of {', '.join(parts)}, got {shown(name)}. "
        f"Use a {', '.join(kind.title for kind in KINDS.values())} of the diffusion model."
    )
