"""Latents on disk, by number in a folder."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("domaingallery")


class LatentCache:
    """Keep latents by number in a folder; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def read(self, number: int, shape: tuple[int, ...]) -> Tensor | None:
        """Return the latent of a number; None if there is none, or it is damaged."""
        if self.folder is None or not (path := _path(self.folder, number)).is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                latent = file.get_tensor("latent")
        except (OSError, SafetensorError) as error:
            log.warning("drawing image %d again: %s", number, error)
            return None
        sound = tuple(latent.shape) == tuple(shape) and bool(torch.isfinite(latent).all())
        return latent if sound else None

    def write(self, number: int, latent: Tensor) -> None:
        """Keep a latent. A disk that refuses ends the keeping, not the drawing."""
        if self.folder is None:
            return
        path = _path(self.folder, number)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"latent": latent.detach().cpu().contiguous().clone()}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            log.warning("source images are no longer kept in %s: %s", self.folder, error)
            self.folder = None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"
