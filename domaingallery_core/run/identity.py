"""What tells a run from every other, and what two of them differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.parts import Part
from ..fingerprints import fingerprint
from ..model.denoiser import resolved
from ..trainables.trainable import Trainable
from .plan import TrainingPlan


def run_identity(
    trainable: Trainable,
    parts: Sequence[Part],
    plan: TrainingPlan,
    base: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides a run: the plan, and hashes of images, prompts, weights to begin with and base.

    Args:
        parts: what the run reads, and no more.
        base: hashes that say which base model it is, and what it computes.
    """
    found: dict[str, Any] = {
        "plan": plan.to_dict(),
        **{f"base model {name}": value for name, value in base.items()},
        "starting weights": fingerprint(trainable.state_dict()),
        "device": next(iter(trainable.named_parameters().values())).device.type,
    }
    found["parts"] = ", ".join(f"{part.name} ({part.role})" for part in parts)  # they take turns in order
    with torch.no_grad():
        for part in parts:
            for kind in ("target", "source", "validation"):
                found[f"{kind} images of {part.name}"] = fingerprint(getattr(part, kind))
            for kind in ("target", "source", "empty"):
                prompt = getattr(part.prompts, kind)
                now = None if prompt is None else resolved(prompt)
                found[f"{kind} prompt of {part.name}"] = fingerprint(now)
            if captions := part.prompts.captions:
                found[f"captions of {part.name}"] = fingerprint([resolved(caption) for caption in captions])
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
