"""Embedding files: the vectors of a new word, whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError, shown
from .writing import save_tensors

#: What most programs call the vectors of a model with one text encoder.
ALONE = "emb_params"


def save_embedding(
    path: Path,
    vectors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    replace: bool = True,
) -> Path:
    """Write vectors (K D) by the names of their text encoders to a safetensors file.

    Raises:
        FileError: there are none, they are no finite vectors, or the disk refuses.
        FileExistsError: there is a file of this name, and it is not to be replaced.
    """
    if not vectors:
        raise FileError("Expected an embedding of at least one text encoder, got none. Train one first.")
    for name, tensor in vectors.items():
        if tensor.ndim != 2 or tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
            raise FileError(
                f"Expected finite vectors (K D), got {shown(tensor)} for {shown(name)}, or NaN in it. "
                "The file was not written."
            )
    named = dict(vectors) if len(vectors) > 1 else {ALONE: next(iter(vectors.values()))}
    save_tensors(path, named, metadata or {}, replace=replace)
    return path
