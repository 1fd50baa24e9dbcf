"""LoRA files: tensors under the names of a format, with metadata, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError, shown
from .formats import FORMATS, Format
from .writing import save_tensors


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    key_format: str = "comfyui",
    key_map: Mapping[str, str] | None = None,
    replace: bool = True,
) -> Path:
    """Write a LoRA under the core's names to a safetensors file, read it back, and only then put it in place.

    Args:
        key_map: module -> name in the file, for formats that leave it to the model.

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
    named = _format(key_format)(key_map).to_file(tensors)
    save_tensors(path, named, metadata or {}, replace=replace)
    return path


def core_names(tensors: Mapping[str, Tensor], key_map: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return tensors, which have the names of one of the formats, under the core's names.

    Raises:
        FileError: they have other names, or those of another model.
    """
    found = next((form for form in FORMATS.values() if form.recognises(tensors)), _format("comfyui"))
    return found(key_map).from_file(tensors)


def _format(name: str) -> type[Format]:
    if name not in FORMATS:
        raise FileError(f"Expected a key format among {', '.join(FORMATS)}, got {shown(name)}. Choose one.")
    return FORMATS[name]
