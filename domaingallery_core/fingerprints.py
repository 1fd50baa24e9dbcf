"""Short hashes that tell whether a run goes on with the same data, prompts and base model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import Adapter
from .config import TrainingPlan
from .datasets import Dataset
from .denoiser import Conditions

#: How many values of each weight go into the hash of a model.
SAMPLED = 64


def fingerprint(value: Any) -> str:
    """Return the hash of a value and all that it holds: tensors by dtype, shape and bytes.

    Mappings, sequences and dataclasses are read through; the rest counts by its repr.
    """
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def weights_hash(module: nn.Module) -> str:
    """Return a hash of a model that takes milliseconds.

    It covers name and shape of every parameter, and of each SAMPLED values at even distances, in float32.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(module.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        values = weight.detach().flatten()
        digest.update(_bytes(values[:: max(1, len(values) // SAMPLED)][:SAMPLED].float()))
    return digest.hexdigest()


def run_identity(
    adapter: Adapter, dataset: Dataset, conditions: Conditions, plan: TrainingPlan, base: str
) -> dict[str, Any]:
    """Return what decides a run: the plan, and hashes of images, prompts, weights to begin with and base.

    Args:
        dataset: what the run reads, and no more.
        base: says which base model it is.
    """
    found: dict[str, Any] = {
        "plan": plan.to_dict(),
        "base model": base,
        "starting weights": fingerprint(adapter.state_dict()),
    }
    for part, name in ((dataset, "images"), (conditions, "prompt")):
        found |= {f"{f.name} {name}": fingerprint(getattr(part, f.name)) for f in fields(part)}
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return, in words, where two identities of runs differ.

    A long hash is not shown. Values of nested mappings are named with a dot.
    """
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            hashed = any(isinstance(value, str) and len(value) == 64 for value in (old, new))
            words = "differs" if hashed else f"was {old!r} and is {new!r}"
            found.append(f"{prefix}{name} {words}")
    return found


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(f"{name}:".encode())
            _update(digest, value[name])
    elif is_dataclass(value) and not isinstance(value, type):
        _update(digest, {f.name: getattr(value, f.name) for f in fields(value)})
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values\n".encode())
        for each in value:
            _update(digest, each)
    else:
        digest.update(f"{value!r}\n".encode())


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
