"""The kinds of adapter, a file each."""

from ...rooms import import_all
from .base import KINDS, Kind, describe, number

__all__ = ["KINDS", "Kind", "describe", "number"]

import_all(__name__, __path__)
