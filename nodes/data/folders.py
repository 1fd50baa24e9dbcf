"""Load Domain Images: a folder of images of any kind, with their captions. Uploads: web/upload_images.js."""

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

from ...domaingallery_core.errors import FileError, InputError, shown
from ...domaingallery_core.pictures.grids import image_to_tensor
from ..checks import check_text
from ..host.progress import check_interrupt
from ..node import Node
from ..sockets import CATEGORY

#: A message names at most so many files.
MOST_NAMED = 5
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
            search_aliases=[
                "load folder",
                "load images",
                "image folder",
                "upload images",
                "captions",
                "few-shot images",
            ],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders_with_images(),
                    tooltip="A folder inside the host's input folder; those that hold images are listed. "
                    "Below, upload some, or drop them onto the node.",
                ),
                io.Int.Input(
                    "largest_side",
                    default=2048,
                    min=0,
                    max=65536,
                    tooltip="Larger images are loaded at this size in pixels, which saves memory; training "
                    "takes smaller ones anyway. 0: as they are.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="For target_images of Domain Dataset."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="The text of the .txt file beside each image, empty without one. With several "
                    "categories, for categories of Domain Dataset.",
                ),
            ],
        )

    @classmethod
    def execute(cls, folder: str, largest_side: int) -> io.NodeOutput:
        files = image_files(input_folder(folder))
        captions = [caption_of(file) for file in files]
        return io.NodeOutput(load_all(files, largest_side or None), captions)

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        """Refuse a folder without images before anything runs, in words that say what to do."""
        try:
            if folder is not None:  # it may come through a link
                check_text("folder", folder)
                image_files(input_folder(folder))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, largest_side: int) -> str:
        digest = hashlib.sha256(f"{largest_side}".encode())
        for file in sorted(input_folder(folder).iterdir()):
            status = file.stat() if file.exists() else file.lstat()  # a link may lead nowhere
            digest.update(os.fsencode(file.name) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def folders_with_images() -> list[str]:
    """Return the folders inside the input folder that hold images themselves."""
    base = Path(folder_paths.get_input_directory())
    return [name for name in folder_paths.get_input_subfolders() if _holds_images(base / name)]


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in SUFFIXES for entry in entries)
    except OSError:  # gone meanwhile, or not ours to read
        return False


def input_folder(folder: str) -> Path:
    """Return the path of a folder inside the input folder.

    Raises:
        InputError: it is not there, or not inside.
    """
    base = folder_paths.get_input_directory()
    path = os.path.abspath(os.path.join(base, folder))
    if not folder_paths.is_within_directory(base, path) or not os.path.isdir(path):
        raise InputError(
            f"Expected a folder inside the input folder, got {shown(folder)}. Choose one of the list."
        )
    return Path(path)


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their names.

    Raises:
        InputError: there are none.
    """
    named = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    files = sorted(file for file in named if file.is_file() or file.is_symlink())
    if not files:
        raise InputError(
            f"Expected images in the folder {shown(folder.name)}, got none. Put some there "
            f"({', '.join(sorted(s[1:] for s in SUFFIXES))}), or upload some on Load Domain Images."
        )
    return files


def load_all(files: list[Path], largest_side: int | None = None) -> list[Tensor]:
    """Return images, each 1 H W 3 in 0..1, with sides of at most `largest_side` pixels.

    Raises:
        FileError: some cannot be read; they are named.
    """
    images, broken = [], []
    for file in files:
        check_interrupt()
        try:
            images.append(load_image(file, largest_side))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{shown(file.name)} ({reason(error, file)})")
    if broken:
        more = [f"and {len(broken) - MOST_NAMED} more"] if len(broken) > MOST_NAMED else []
        raise FileError(
            f"Expected {len(files)} images that can be read, got {len(broken)} that cannot: "
            f"{'; '.join(broken[:MOST_NAMED] + more)}. Save them again or take them out of the folder."
        )
    return images


def reason(error: Exception, file: Path) -> str:
    """Return why a file cannot be read, in words, without its path."""
    text = str(getattr(error, "strerror", None) or error)
    return "it is no image" if str(file.parent) in text else text


def load_image(file: Path, largest_side: int | None = None) -> Tensor:
    """Return an image (1 H W 3, in 0..1): turned as EXIF says, the first frame, what is clear on white.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: it cannot be read.
    """
    with Image.open(file) as opened:
        if largest_side:
            opened.draft("RGB", (largest_side, largest_side))  # JPEG decodes to a smaller size by itself
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = Image.fromarray(_grey(np.asarray(image).astype(np.float32), image.mode, opened.format))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        else:
            image = image.convert("RGB")
        if largest_side and max(image.size) > largest_side:
            image.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
        if image.mode != "F":
            return image_to_tensor(image)
        grey = np.clip(np.asarray(image), 0, 1)
        return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))[None]


def _grey(values: np.ndarray, mode: str, kind: str | None) -> np.ndarray:
    """Return grey values in 0..1, from the range that they are stored in: the least that holds them all.

    Raises:
        ValueError: they are not finite, or below 0.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0:
        raise ValueError(f"it holds values below 0, down to {low:g}")
    if mode.startswith("I;16") or kind == "PNG":
        most = 65535.0
    else:
        ranges = (1.0, 255.0, 65535.0, float(2**31 - 1))
        most = next((most for most in ranges if high <= most and (most > 1 or mode == "F")), high)
    return values / np.float32(most)


def caption_of(file: Path) -> str:
    """Return the text beside an image.

    Raises:
        FileError: it is not text.
    """
    path = file.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"Expected text in {shown(path.name)}, got: {reason(error, path)}. Save it again as UTF-8."
        ) from error
