"""Save LoRA: from a LORA_MODEL to a file that the host and other programs load."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import comfy.lora
import folder_paths
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.errors import FileError, InputError, shown
from ...domaingallery_core.files.formats import FORMATS
from ...domaingallery_core.files.formats.base import layers_of
from ...domaingallery_core.files.formats.comfyui import Comfyui
from ...domaingallery_core.files.formats.kohya import Kohya
from ...domaingallery_core.files.lora import format_of, save_lora
from ...domaingallery_core.files.writing import clear_leftovers, read_tensors, refused
from ..host.progress import node_id, say, warned
from ..node import Node
from ..sockets import CATEGORY, TrainedLora

log = logging.getLogger("domaingallery")

#: So many processes may take the next number at the same moment.
MOST_AT_ONCE = 1000


class DomainGallerySaveLora(Node):
    """Write a LoRA to a file where the host finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySaveLora",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes a LoRA to output/loras, where the LoRA loaders find it, and reads it back. "
            "The file says how it was trained and which words call it up.",
            search_aliases=["export lora", "write lora", "lora file", "safetensors"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input("lora", tooltip="From one of the training nodes."),
                io.String.Input(
                    "name",
                    default="domain",
                    tooltip="The beginning of the file name inside output/loras; a number is added. "
                    "May name folders, such as faces/sketch.",
                ),
                io.Combo.Input(
                    "key_format",
                    options=list(FORMATS),
                    default=Kohya.name,
                    tooltip=". ".join(f"{name}: {form.help}" for name, form in FORMATS.items()) + ".",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The full path of the file.")],
        )

    @classmethod
    def execute(cls, lora, name: str, key_format: str) -> io.NodeOutput:
        folder, filename, number, subfolder = place_of(name)
        tensors = tensors_of(lora, key_format)
        said = getattr(lora, "metadata", None)
        clear_leftovers(folder)
        for counter in range(number, number + MOST_AT_ONCE):
            try:
                path = save_lora(
                    folder / f"{filename}_{counter:05}_.safetensors",
                    tensors,
                    None if said is None else said | {"ss_output_name": filename},
                    key_format=key_format,
                    names=getattr(lora, "names", None),
                    replace=False,
                )
                break
            except FileExistsError:  # another process was quicker
                continue
        else:
            raise FileError(f"Expected a free number for {shown(name)}, got none. Choose another name.")
        where = os.path.join("loras", subfolder).replace("\\", "/").rstrip("/")
        saved = {"filename": path.name, "subfolder": where, "type": "output"}
        text = f"saved {where}/{path.name}, {', '.join(checked(path, key_format, tensors, lora))}"
        say(node_id(cls), text)
        return io.NodeOutput(str(path), ui={"loras": [saved], "text": ["\n".join([text, *warned()])]})


def tensors_of(lora: Mapping[str, Tensor], key_format: str) -> Mapping[str, Tensor]:
    """Return a LORA_MODEL under the names of the core, as a format holds it.

    Raises:
        FileError: its names are not those of the host, or the format is not known.
    """
    if format_of(key_format).as_trained and isinstance(lora, TrainedLora):
        return lora.state
    found, other = Comfyui().from_file(lora)
    if other:
        raise FileError(
            f"Expected LoRA names that begin with {Comfyui.prefix!r}, got {shown(other[0])}. "
            "Connect the lora output of a training node."
        )
    return found


def checked(
    path: Path, key_format: str, tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor]
) -> list[str]:
    """Return what there is to say of a file, which is read again as the host's loaders do."""
    found, metadata = read_tensors(path)
    said = [f"{key_format} names"]
    if isinstance(lora, TrainedLora):
        patches = comfy.lora.load_lora(found, lora.loads, log_missing=False)
        keys = {key if isinstance(key, str) else key[0] for key in patches}
        said.append(f"{len(keys)} of {len(layers_of(tensors))} layers found in the model")
        read = set().union(*(getattr(patch, "loaded_keys", ()) for patch in patches.values()))
        if unread := [name for name in found if name not in read]:
            log.warning(
                "ComfyUI's own loaders do not know %d of the %d names of this file, such as %s. It is for "
                "other programs; to draw with it here, save in the kohya format.",
                len(unread), len(found), shown(unread[0]),
            )  # fmt: skip
    if trigger := metadata.get("modelspec.trigger_phrase"):
        said.append(f'trigger words: "{trigger}"')
    return said


def place_of(name: str) -> tuple[Path, str, int, str]:
    """Return folder, beginning of the file name, first free number and sub-folder for a name.

    Raises:
        InputError: the name leads out of the folder of LoRAs, through a link as well.
        FileError: the disk refuses.
    """
    prefix, base = checked_name(name), os.path.join(folder_paths.get_output_directory(), "loras")
    try:
        if not folder_paths.is_within_directory(base, os.path.join(base, os.path.dirname(prefix))):
            raise InputError(
                f"Expected a name inside the folder output/loras, got {shown(name)}, which a link leads "
                "out of it. Choose another name."
            )
        folder, filename, number, subfolder, _ = folder_paths.get_save_image_path(prefix, base)
    except OSError as error:
        raise refused(Path(base, prefix), error) from error
    return Path(folder), filename, number, subfolder


def checked_name(name: str, folder: str = "output/loras") -> str:
    """Return the beginning of a file name that stays inside the folder it is for.

    Raises:
        InputError: it is empty, absolute, or climbs out.
    """
    name = name.strip()
    windows = PureWindowsPath(name)
    parts = windows.parts
    if not name or name[-1] in "/\\" or windows.anchor or PurePosixPath(name).is_absolute() or ".." in parts:
        raise InputError(
            f"Expected a name inside the folder {folder}, got {shown(name)}. "
            "Enter a name without '..' or a leading slash."
        )
    return "/".join(parts)
