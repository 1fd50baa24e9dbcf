"""The formats of LoRA files, a file each."""

from ...rooms import import_all
from .base import FORMATS, Format

__all__ = ["FORMATS", "Format"]

import_all(__name__, __path__)
