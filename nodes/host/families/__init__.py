"""The model families, a file each, and how a MODEL is told to be of one."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher

from ....domaingallery_core.rooms import import_all
from .base import FAMILIES, Drawing, Evaluate, Family, Patches

__all__ = ["FAMILIES", "Drawing", "Evaluate", "Family", "Patches", "family_of"]

import_all(__name__, __path__)


def family_of(model: ModelPatcher) -> Family:
    """Return the family of a MODEL, the most particular one; every MODEL is at least of the plain one.

    Of several that are as particular, it is the one that was defined last.
    """
    found = [family for family in FAMILIES.values() if family.recognises(model.model)]
    return max(reversed(found), key=lambda family: len(type(family).mro()))
