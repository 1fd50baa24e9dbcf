"""What tells a run from every other, and what two of them differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..data.datasets import Dataset
from ..fingerprints import fingerprint
from ..model.denoiser import Conditions
from ..trainables.trainable import Trainable
from .plan import TrainingPlan


def run_identity(
    trainable: Trainable,
    dataset: Dataset,
    conditions: Conditions,
    plan: TrainingPlan,
    base: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides a run: the plan, and hashes of images, prompts, weights to begin with and base.

    Args:
        dataset: what the run reads, and no more.
        base: hashes that say which base model it is, and what it computes.
    """
    found: dict[str, Any] = {
        "plan": plan.to_dict(),
        **{f"base model {name}": value for name, value in base.items()},
        "starting weights": fingerprint(trainable.state_dict()),
        "device": next(iter(trainable.named_parameters().values())).device.type,
    }
    for part, name in ((dataset, "images"), (conditions, "prompt")):
        found |= {f"{f.name} {name}": fingerprint(getattr(part, f.name)) for f in fields(part)}
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return, in words, where two identities of runs differ.

    A long hash is not shown, nor what is long. Values of nested mappings are named with a dot.
    """

    def short(value: Any) -> str:
        text = ascii(value)
        return text if len(text) <= 60 else f"{text[:60]}..."

    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            hashed = any(isinstance(value, str) and len(value) == 64 for value in (old, new))
            words = "differs" if hashed else f"was {short(old)} and is {short(new)}"
            found.append(f"{prefix}{short(str(name))[1:-1]} {words}")
    return found
