"""Inputs of nodes, made of what is said of the settings that they are for."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..domaingallery_core.methods import Term
from ..domaingallery_core.settings import Settings, settings_of


def setting_input(kind: type[Settings], name: str, *, advanced: bool = False) -> io.Input:
    """Return the input for a setting of a class; one that most leave alone is advanced and may be absent."""
    said, default = settings_of(kind)[name]
    shared: dict[str, Any] = {"id": said.label or name, "default": default, "tooltip": said.help}
    if advanced:
        shared |= {"optional": True, "advanced": True}
    if said.choices is not None:
        return io.Combo.Input(options=list(said.choices), **shared)
    if isinstance(default, str):
        return io.String.Input(**shared)
    if isinstance(default, int):
        return io.Int.Input(min=int(said.least), max=int(said.most), **shared)
    digits = {} if said.digits is None else {"round": 10**-said.digits}
    return io.Float.Input(min=said.least, max=said.most, step=said.step, **digits, **shared)


def weight_input(term: Term) -> io.Input:
    """Return the input for the weight of a term."""
    return io.Float.Input(
        f"{term.name}_weight", default=term.weight, min=0.0, max=1000.0, step=0.1, tooltip=term.help
    )
