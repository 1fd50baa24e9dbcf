"""Hashes that tell whether data, prompts, models and runs are the same."""

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

_PLAIN = (str, bytes, bool, int, float, type(None), torch.dtype)


def fingerprint(value: Any) -> str:
    """Return the hash of a value and all that it holds, the same in every process.

    Raises:
        TypeError: a part of it, such as code, cannot be told by its content.
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
    kind = Tensor if isinstance(value, Tensor) else type(value)  # a parameter is as good as its tensor
    # The host names the packages of packs after their folders; only the last part is the same elsewhere.
    digest.update(f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}:".encode())
    if isinstance(value, _PLAIN):
        digest.update(f"{value!r}\n".encode())
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        if not value.is_meta:
            digest.update(_bytes(value))
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values\n".encode())
        for each in value:
            _update(digest, each)
    elif isinstance(value, Mapping):
        _update(digest, sorted(map(fingerprint, value.items())))
    elif isinstance(value, (set, frozenset)):
        _update(digest, sorted(map(fingerprint, value)))
    elif isinstance(value, nn.Module):
        _update(digest, dict(value.state_dict()))
    elif callable(value):
        raise TypeError(f"Expected values, tensors and modules to hash, got code: {kind.__qualname__}.")
    elif is_dataclass(value):
        _update(digest, {f.name: getattr(value, f.name) for f in fields(value)})
    else:
        _update(digest, vars(value))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
