"""Latents on disk, by number in a folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError
from ..files.writing import clear_leftovers, load_tensors, save_tensors, write_file

log = logging.getLogger("domaingallery")

LATENT, BLOCK = "latent", "drawn together"
SETTINGS = "drawing.json"


class LatentCache:
    """Keep latents by number in a folder; without a folder nothing is kept.

    A latent depends on those that were drawn together with it: a little by rounding, and entirely with
    samplers that draw noise for all of them at once. So it is kept with their number, and is as none where
    that differs.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None and folder.is_dir():
            clear_leftovers(folder)
            os.utime(folder)  # it is in use

    def read(self, number: int, shape: tuple[int, ...], block: int) -> Tensor | None:
        """Return the latent of a number drawn with `block` ones; None if there is none, or it is damaged."""
        if self.folder is None or not (path := _path(self.folder, number)).exists():
            return None
        try:
            tensors, metadata = load_tensors(path)
        except FileError as error:
            log.warning("Image %d is drawn again. %s", number, str(error))
            return None
        latent = tensors.get(LATENT)
        if latent is None or tuple(latent.shape) != tuple(shape) or metadata.get(BLOCK) != str(block):
            return None
        return latent if bool(torch.isfinite(latent).all()) else None

    def write(self, number: int, latent: Tensor, block: int) -> None:
        """Keep a latent. A disk that refuses ends the keeping, not the drawing."""
        if self.folder is not None:
            try:
                save_tensors(_path(self.folder, number), {LATENT: latent}, {BLOCK: str(block)})
            except FileError as error:
                self._refused(error)

    def batch_size(self, fitting: int) -> int:
        """Return how many are drawn at once, where that is left to us: as many as the first time."""
        if self.folder is None:
            return fitting
        path = self.folder / SETTINGS
        try:
            known = json.loads(path.read_bytes())["batch_size"]
            if type(known) is int and 1 <= known <= 256:  # true is an int as well
                return known
        except (OSError, ValueError, KeyError, TypeError):
            pass
        try:
            write_file(path, json.dumps({"batch_size": fitting}).encode())
        except FileError as error:
            self._refused(error)
        return fitting

    def _refused(self, error: FileError) -> None:
        log.warning("Source images are no longer kept. %s", str(error))
        self.folder = None


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"
