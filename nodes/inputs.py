"""Inputs that nodes of several rooms have."""

from __future__ import annotations

import comfy.samplers
from comfy_api.v0_0_2 import io

SEEDS = 2**64


def cfg_input(
    tooltip: str = "Guidance scale. 7.5 is the paper's; small models like less.", *, default: float = 7.5
) -> io.Input:
    return io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def seed_input(tooltip: str, *, control: bool | io.ControlAfterGenerate = True) -> io.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=SEEDS - 1, control_after_generate=control, tooltip=tooltip
    )


def steps_input(default: int, tooltip: str) -> io.Input:
    return io.Int.Input("steps", default=default, min=min(default, 1), max=10000, tooltip=tooltip)


def sampler_input(default: str, tooltip: str) -> io.Input:
    return _choice("sampler_name", comfy.samplers.SAMPLER_NAMES, default, tooltip)


def scheduler_input(default: str, tooltip: str) -> io.Input:
    return _choice("scheduler", comfy.samplers.SCHEDULER_NAMES, default, tooltip)


def _choice(name: str, known: list[str], default: str, tooltip: str) -> io.Input:
    """Return a choice among what the host knows; a default that it does not know comes first."""
    options = known if default in known else [default, *known]
    return io.Combo.Input(name, options=options, default=default, tooltip=tooltip)
