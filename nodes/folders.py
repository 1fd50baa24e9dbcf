"""Load Domain Images: a folder of images of any kind, with their captions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from PIL import Image, ImageOps
from torch import Tensor

from ..domaingallery_core.errors import FileError, InputError
from ..domaingallery_core.grids import image_to_tensor
from .node import Node
from .progress import check_interrupt
from .sockets import CATEGORY

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class DomainGalleryLoadImages(Node):
    """Load the images of a folder as they are meant to look."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryLoadImages",
            display_name="Load Domain Images",
            category=CATEGORY,
            description="Loads all images of a folder inside input, in the order of their names, upright and "
            "in RGB whatever they are stored as, and the text beside each. A file that cannot be read is an "
            "error that names it.",
            search_aliases=["load folder", "load images", "image folder", "captions", "few-shot images"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folder_paths.get_input_subfolders(),
                    tooltip="A folder inside the host's input folder.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="For target_images of Dataset."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="The text of the .txt file beside each image, empty without one. With several "
                    "categories, for categories of Dataset.",
                ),
            ],
        )

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        files = image_files(input_folder(folder))
        return io.NodeOutput(load_all(files), [caption_of(file) for file in files])

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        digest = hashlib.sha256()
        for file in sorted(input_folder(folder).iterdir()):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def input_folder(folder: str) -> Path:
    """Return the path of a folder inside the input folder.

    Raises:
        InputError: it is not there, or not inside.
    """
    base = folder_paths.get_input_directory()
    path = os.path.abspath(os.path.join(base, folder))
    if not folder_paths.is_within_directory(base, path) or not os.path.isdir(path):
        raise InputError(
            f"Expected a folder inside the input folder, got {folder!r}. Choose one of the list."
        )
    return Path(path)


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their names.

    Raises:
        InputError: there are none.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(
            f"Expected images in the folder {folder.name!r}, got none. Put some there "
            f"({', '.join(sorted(s[1:] for s in SUFFIXES))})."
        )
    return files


def load_all(files: list[Path]) -> list[Tensor]:
    """Return images, each 1 H W 3 in 0..1.

    Raises:
        FileError: some cannot be read; all of them are named.
    """
    images, broken = [], []
    for file in files:
        check_interrupt()
        try:
            images.append(load_image(file))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{file.name} ({error})")
    if broken:
        raise FileError(
            f"Expected {len(files)} images that can be read, got {len(broken)} that cannot: "
            f"{'; '.join(broken)}. Save them again or take them out of the folder."
        )
    return images


def load_image(file: Path) -> Tensor:
    """Return an image (1 H W 3, in 0..1): turned as EXIF says, the first frame, what is clear on white."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            grey = np.asarray(image).astype(np.float32)
            most = 1.0 if image.mode == "F" and grey.max() <= 1 else 65535.0
            grey = np.clip(grey / most, 0, 1)
            return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))[None]
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image_to_tensor(image)


def caption_of(file: Path) -> str:
    """Return the text beside an image.

    Raises:
        FileError: it is not text.
    """
    path = file.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"Expected text in {path.name}, got: {error}. Save it again as UTF-8.") from error
