"""LoRA files: tensors under the names of a format, with metadata, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError, shown
from .formats import FORMATS, Format
from .layers import LayerNames
from .writing import save_tensors


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    key_format: str = "kohya",
    names: LayerNames | None = None,
    replace: bool = True,
) -> Path:
    """Write a LoRA under the core's names to a safetensors file, read it back, and only then put it in place.

    Args:
        names: what files call the layers of the model, for formats that leave it to the model.

    Raises:
        FileError: the tensors are empty or not finite, a name is unknown, or the disk refuses.
        FileExistsError: there is a file of this name, and it is not to be replaced.
    """
    if not tensors:
        raise FileError("Expected a LoRA with at least one tensor, got none. Train one first.")
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise FileError(
                f"Expected finite weights, got NaN, infinity or nothing in {shown(name)}. "
                "The file was not written."
            )
    named = format_of(key_format)(names).to_file(tensors)
    save_tensors(path, named, metadata or {}, replace=replace)
    return path


def core_names(
    tensors: Mapping[str, Tensor], names: LayerNames | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors, as any program wrote them, under the core's names, and names of no layer of the model.

    Raises:
        FileError: all names are those of another model, of a text encoder or of another program.
    """
    form = next((form for form in FORMATS.values() if form.recognises(tensors)), format_of("comfyui"))
    found, unknown = form(names).from_file(tensors)
    if not found:
        raise FileError(
            f"Expected a LoRA with layers of this model, got {len(unknown)} names that it does not have"
            f"{', such as ' + shown(unknown[0]) if unknown else ''}. Use a LoRA made for such a model."
        )
    return found, unknown


def format_of(name: str) -> type[Format]:
    """Return a format by its name.

    Raises:
        FileError: there is none of this name.
    """
    if name not in FORMATS:
        raise FileError(f"Expected a key format among {', '.join(FORMATS)}, got {shown(name)}. Choose one.")
    return FORMATS[name]
