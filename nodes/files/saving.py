"""Save Trained LoRA and Save Trained Embedding: to files that the host and other programs load."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import comfy.lora
import folder_paths
from comfy_api.v0_0_2 import io, ui
from PIL import Image
from torch import Tensor

from ...domaingallery_core.errors import FileError, InputError, shown
from ...domaingallery_core.files.embeddings import save_embedding
from ...domaingallery_core.files.formats import FORMATS
from ...domaingallery_core.files.formats.base import layers_of
from ...domaingallery_core.files.formats.comfyui import Comfyui
from ...domaingallery_core.files.formats.kohya import Kohya
from ...domaingallery_core.files.lora import format_of, save_lora
from ...domaingallery_core.files.writing import clear_leftovers, read_tensors, refused
from ...domaingallery_core.pictures.grids import image_to_tensor
from ..host.progress import node_id, say, warned
from ..node import Node
from ..sockets import CATEGORY, Embedding, TrainedLora

log = logging.getLogger("domaingallery")

#: So many processes may take the next number at the same moment.
MOST_AT_ONCE = 1000
#: What ends the name of an embedding in a prompt, or means something else there.
ENDING = " \t\n<[],():"


class DomainGallerySaveLora(Node):
    """Write a LoRA to a file where the host finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySaveLora",
            display_name="Save Trained LoRA",
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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, lora, name: str, key_format: str) -> io.NodeOutput:
        tensors = tensors_of(lora, key_format)
        said, names = getattr(lora, "metadata", None), getattr(lora, "names", None)
        if said is not None:
            said = said | {"ss_output_name": PurePosixPath(checked_name(name)).name}

        def save(path: Path) -> Path:
            return save_lora(path, tensors, said, key_format=key_format, names=names, replace=False)

        path, saved = save_numbered(name, "loras", save)
        found, header = read_tensors(path)
        lines = [
            f"saved as {saved['subfolder']}/{path.name}",
            "with " + ", ".join(checked(found, key_format, tensors, lora)),
        ]
        if trigger := header.get("modelspec.trigger_phrase"):
            lines.insert(0, f'trigger words: "{trigger}"')  # first, as a node has room for few lines
        say(node_id(cls), "\n".join(lines))
        return io.NodeOutput(
            str(path),
            ui={"loras": [saved], "text": ["\n".join([*lines, *warned()])], **picture(header, cls)},
        )


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
    found: Mapping[str, Tensor], key_format: str, tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor]
) -> list[str]:
    """Return what there is to say of what is in a file, read as the host's loaders do."""
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
    return said


def picture(header: Mapping[str, str], cls: type[io.ComfyNode]) -> dict[str, Any]:
    """Return the picture in the header of a file as a client shows it on a node; nothing where there is none.

    It is only looked at: one that cannot be shown ends nothing.
    """
    kind, _, text = header.get("modelspec.thumbnail", "").partition(",")
    if not kind.endswith(";base64"):
        return {}
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True))) as image:
            return {"images": ui.PreviewImage(image_to_tensor(image), cls=cls).as_dict()["images"]}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("The picture in the file cannot be shown: %s", str(error))
        return {}


class DomainGallerySaveEmbedding(Node):
    """Write the vectors of a new word to a file where the host finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySaveEmbedding",
            display_name="Save Trained Embedding",
            category=CATEGORY,
            description="Writes a new word to output/embeddings, where prompts find it as embedding:name.",
            search_aliases=["textual inversion", "export embedding", "token", "safetensors"],
            is_output_node=True,
            inputs=[
                Embedding.Input("embedding", tooltip="From Train Baseline, trained by Textual Inversion."),
                io.String.Input(
                    "name",
                    default="domain",
                    tooltip="The beginning of the file name inside output/embeddings; a number is added. "
                    "May name folders, but has no spaces, which would end it in a prompt.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="word", tooltip="What stands for it in a prompt, embedding:name."
                ),
                io.String.Output(display_name="path", tooltip="The full path of the file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, embedding, name: str) -> io.NodeOutput:
        checked_word(name)
        path, saved = save_numbered(
            name,
            "embeddings",
            lambda path: save_embedding(path, embedding, embedding.metadata, replace=False),
        )
        folder = saved["subfolder"].partition("/")[2]
        word = f"embedding:{folder}/{path.stem}" if folder else f"embedding:{path.stem}"
        text = f"{word}\nsaved {saved['subfolder']}/{path.name}"
        say(node_id(cls), text)
        return io.NodeOutput(word, str(path), ui={"text": [text]})


def checked_word(name: str) -> str:
    """Return the beginning of the name of an embedding.

    Raises:
        InputError: it is empty, leads out of the folder, or has in it what ends it in a prompt.
    """
    if odd := [sign for sign in name.strip() if sign in ENDING]:
        raise InputError(
            f"Expected a name that a prompt can hold, got {shown(name)} with {shown(odd[0])} in it. "
            "Take it out."
        )
    return checked_name(name, "output/embeddings")


def save_numbered(name: str, kind: str, save: Callable[[Path], Path]) -> tuple[Path, dict[str, str]]:
    """Save under the first free number of a name in output/<kind>; return the file, and what a client needs.

    Raises:
        InputError: the name leads out of the folder.
        FileError: the disk refuses, or no number is free.
    """
    folder, filename, number, subfolder = place_of(name, kind)
    clear_leftovers(folder)
    for counter in range(number, number + MOST_AT_ONCE):
        try:
            path = save(folder / f"{filename}_{counter:05}_.safetensors")
            break
        except FileExistsError:  # another process was quicker
            continue
    else:
        raise FileError(f"Expected a free number for {shown(name)}, got none. Choose another name.")
    where = os.path.join(kind, subfolder).replace("\\", "/").rstrip("/")
    return path, {"filename": path.name, "subfolder": where, "type": "output"}


def place_of(name: str, kind: str = "loras") -> tuple[Path, str, int, str]:
    """Return folder, beginning of the file name, first free number and sub-folder for a name.

    Raises:
        InputError: the name leads out of the folder output/<kind>, through a link as well.
        FileError: the disk refuses.
    """
    prefix = checked_name(name, f"output/{kind}")
    base = os.path.join(folder_paths.get_output_directory(), kind)
    try:
        if not folder_paths.is_within_directory(base, os.path.join(base, os.path.dirname(prefix))):
            raise InputError(
                f"Expected a name inside the folder output/{kind}, got {shown(name)}, which a link leads "
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
