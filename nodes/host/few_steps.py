"""Models that are made for few steps: some are told by what they are, others by the name of their file."""

from __future__ import annotations

import re
from pathlib import Path

from comfy.model_patcher import ModelPatcher

from .families import family_of

#: What such models, and the methods that they are made by, are called after.
_NAMES = re.compile(r"(?<![a-z])(turbo|lightning|schnell|lcm|tcd|hyper|dmd2?|distill(ed)?)(?![a-z])", re.I)


def file_of(model: ModelPatcher) -> str:
    """Return the name of the file that a MODEL was loaded from; "" where a loader does not say."""
    loader = getattr(model, "cached_patcher_init", None)
    known = loader is not None and loader[1] and isinstance(loader[1][0], str)
    return Path(loader[1][0]).name if known else ""


def few_steps(model: ModelPatcher) -> str:
    """Return what there is to warn of before a model for few steps is trained; "" for others."""
    family, file = family_of(model), file_of(model)
    if not family.distilled and not _NAMES.search(Path(file).stem):
        return ""
    named = f"A {family.name} model" if family.distilled else f"By its name, {file}"
    return f"{named} is made for few steps, which training blurs: pictures may need more of them."
