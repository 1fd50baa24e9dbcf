"""Latents on disk, under a key of everything that determines them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger("domaingallery")

_PLAIN = (str, bytes, bool, int, float, type(None), torch.dtype)


def content_key(value: Any) -> str | None:
    """Return a hash of a value and all that it holds; None if a part of it, such as code, has none."""
    digest = hashlib.sha256()
    try:
        _feed(digest, value)
    except TypeError:
        return None
    return digest.hexdigest()[:32]


def _feed(digest: Any, value: Any) -> None:
    kind = Tensor if isinstance(value, Tensor) else type(value)  # a parameter is as good as its tensor
    digest.update(f"{kind.__module__}.{kind.__qualname__}:".encode())
    if isinstance(value, _PLAIN):
        digest.update(repr(value).encode())
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if not value.is_meta:
            raw = value.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(raw.view(torch.uint8).numpy()))
    elif isinstance(value, nn.Module):
        _feed(digest, dict(value.state_dict()))
    elif isinstance(value, Mapping):
        digest.update(str(len(value)).encode())
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, (set, frozenset)):
        _feed(digest, sorted(value, key=str))
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for part in value:
            _feed(digest, part)
    elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type):
        _feed(digest, vars(value))
    else:
        raise TypeError(f"Expected plain values, tensors and modules, got a {type(value).__name__}.")


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
