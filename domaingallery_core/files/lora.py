"""LoRA files: the key formats of ComfyUI and kohya, with metadata, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import FileError, shown
from ..trainables.kinds import PARTS
from .writing import CHECKSUM, save_tensors

KEY_FORMATS = ("comfyui", "kohya")
PREFIX = "diffusion_model."
#: The parts of a layer that a file may hold, and what kohya's format calls them.
_KOHYA = {part: part for part in ("alpha", "dora_scale", *PARTS["loha"], *PARTS["lokr"])}
_KOHYA |= {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """Hold what a file holds: tensors under the core's names ("<module>.lora_A.weight", ...) and metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def core_to_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under "diffusion_model.<module>...", as the host's LORA_MODEL has them."""
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def comfyui_to_core(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under "<module>..." from "diffusion_model.<module>...".

    Raises:
        FileError: a name is of another format.
    """
    if other := [name for name in tensors if not name.startswith(PREFIX)]:
        raise FileError(
            f"Expected LoRA names that begin with {PREFIX!r}, got {shown(other[0])}. "
            "Use a LoRA of the diffusion model alone, saved in the comfyui format."
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def kohya_names(modules: Iterable[str]) -> dict[str, str]:
    """Return the key map module -> "lora_unet_<module with _>", which the host and SDXL files use."""
    return {module: "lora_unet_" + module.replace(".", "_") for module in modules}


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
        key_map: module -> name in the file, for "kohya"; without it `kohya_names` is used.

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
    save_tensors(path, _to_file(dict(tensors), key_format, key_map), metadata or {}, replace=replace)
    return path


def load_lora(path: str | os.PathLike[str], *, key_map: Mapping[str, str] | None = None) -> LoraFile:
    """Read a LoRA file of either format under the core's names, in float32.

    Args:
        key_map: module -> name in the file; needed for "kohya".

    Raises:
        FileError: the file is absent, damaged, or holds other names.
    """
    tensors, metadata = _read(Path(path))
    if any(name.startswith("lora_unet_") for name in tensors):
        tensors = _from_kohya(tensors, key_map)
    else:
        tensors = comfyui_to_core(tensors)
    return LoraFile({name: tensor.float() for name, tensor in tensors.items()}, metadata)


def _split(name: str) -> tuple[str, str]:
    """Split a name into its module and its part."""
    for part in (*_KOHYA, *_KOHYA.values()):
        if name.endswith("." + part):
            return name[: -len(part) - 1], part
    raise FileError(
        f"Expected names that end in one of {', '.join(_KOHYA)}, got {shown(name)}. "
        "Use a LoRA, DoRA, LoHa or LoKr of the diffusion model."
    )


def _to_file(
    tensors: dict[str, Tensor], key_format: str, key_map: Mapping[str, str] | None
) -> dict[str, Tensor]:
    if key_format == "comfyui":
        return core_to_comfyui(tensors)
    if key_format != "kohya":
        raise FileError(f"Expected a key format among {KEY_FORMATS!r}, got {shown(key_format)}. Choose one.")
    split = {name: _split(name) for name in tensors}
    names = kohya_names(module for module, _ in split.values()) if key_map is None else key_map
    if unknown := [module for module, _ in split.values() if module not in names]:
        raise FileError(
            f"Expected a kohya name for every layer, got none for {shown(unknown[0])}. "
            "Save in the comfyui format."
        )
    return {f"{names[module]}.{_KOHYA[part]}": tensors[name] for name, (module, part) in split.items()}


def _from_kohya(tensors: dict[str, Tensor], key_map: Mapping[str, str] | None) -> dict[str, Tensor]:
    modules = {file_name: module for module, file_name in (key_map or {}).items()}
    parts = {kohya: core for core, kohya in _KOHYA.items()}
    found = {}
    for name, tensor in tensors.items():
        file_name, part = _split(name)
        if file_name not in modules:
            raise FileError(
                f"Expected kohya names of this model's layers, got {shown(file_name)}. "
                "Use a LoRA made for this model."
            )
        found[f"{modules[file_name]}.{parts.get(part, part)}"] = tensor
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            metadata.pop(CHECKSUM, None)
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"Expected a LoRA in safetensors format at {str(path)!r}, got: {error}. Choose another."
        ) from error
