"""The errors that the core raises on purpose.

DomainGalleryError
  InputError      what the user asked for cannot work
  AdapterError    an adapter does not fit the model
  FileError       a file cannot be written, read or understood
  TrainingError   a run cannot go on
    OutOfMemory   no memory is left for it

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DomainGalleryError(Exception):
    """Base of every error that the core raises on purpose.

    The host shows an error's module, which for a pack is a path.
    """

    __module__ = "domaingallery"


class InputError(DomainGalleryError):
    """Raised when a value that a user chose cannot work."""

    __module__ = "domaingallery"


class AdapterError(DomainGalleryError):
    """Raised when an adapter does not fit the model that it is for."""

    __module__ = "domaingallery"


class FileError(DomainGalleryError):
    """Raised when a file cannot be written, read or understood."""

    __module__ = "domaingallery"


class TrainingError(DomainGalleryError):
    """Raised when a training run cannot go on."""

    __module__ = "domaingallery"


class OutOfMemory(TrainingError, torch.OutOfMemoryError):
    """Raised when no memory is left for a training; it is also torch's own error, which hosts know."""

    __module__ = "domaingallery"


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and without what cannot be shown."""
    if value is None:
        return "nothing"
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)} in {str(value.dtype).removeprefix('torch.')}"
    if not isinstance(value, str | bool | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
