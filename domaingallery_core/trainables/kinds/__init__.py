"""The kinds of adapter, a file each."""

from ...rooms import import_all
from .base import KINDS, AdapterConfig, Kind, describe, number

__all__ = ["KINDS", "AdapterConfig", "Kind", "describe", "number"]

import_all(__name__, __path__)
