"""Inputs that nodes of several rooms have."""

from __future__ import annotations

import comfy.samplers
from comfy_api.v0_0_2 import io

SEEDS = 2**64
CFG = "Guidance scale. 7.5 is the paper's; small models like less."


def cfg_input(tooltip: str = CFG, *, default: float = 7.5) -> io.Input:
    return io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def seed_input(tooltip: str, *, control: bool | io.ControlAfterGenerate = True) -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=SEEDS - 1, control_after_generate=control, tooltip=tooltip
    )


def steps_input(default: int, tooltip: str, *, least: int = 1) -> io.Input:
    return io.Int.Input("steps", default=default, min=least, max=10000, tooltip=tooltip)


def sampler_input(default: str, tooltip: str, *also: str) -> io.Input:
    return _choice("sampler_name", comfy.samplers.SAMPLER_NAMES, default, tooltip, also)


def scheduler_input(default: str, tooltip: str, *also: str) -> io.Input:
    return _choice("scheduler", comfy.samplers.SCHEDULER_NAMES, default, tooltip, also)


def _choice(name: str, known: list[str], default: str, tooltip: str, also: tuple[str, ...]) -> io.Input:
    """Return a choice among what the host knows, and before it a default or others that it does not know."""
    options = [*dict.fromkeys((*also, *known) if default in known else (*also, default, *known))]
    return io.Combo.Input(name, options=options, default=default, tooltip=tooltip)
