"""Hashes that tell whether data, prompts, models and code are the same."""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import math
import types
import uuid
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: More parts than this are not looked at; what has more counts as something that cannot be told.
MOST_PARTS = 300_000
THREADS = 4

#: The flag of classes that were not made in C (Py_TPFLAGS_HEAPTYPE).
_OF_PYTHON = 1 << 9
_PLAIN = (str, bytes, bool, int, float, complex, type(None), type(...), torch.dtype, torch.device)
#: What torch keeps in a module beside its parameters, buffers and children, and is no part of what it does.
_OF_TORCH = {"_parameters", "_buffers", "_modules", "training", "_non_persistent_buffers_set"}
#: What a class holds that says nothing of what it does.
_OF_CLASS = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__annotations__",
    "__static_attributes__",
    "__firstlineno__",
}


def fingerprint(value: Any, stands_for: Callable[[Any], Any] = lambda value: value) -> str:
    """Return the hash of a value and all that it holds, code too; the same in every process.

    Objects count by their class, all that it derives from, and what they hold, never by their address; code
    by what it does and what it has closed over.

    Args:
        stands_for: gives what is hashed in place of an object, or the object.

    Raises:
        TypeError: a part of it cannot be told by its content, such as a lock, or there is too much of it.
    """
    try:
        return _Hasher(stands_for).of(value).hex()
    except RecursionError as error:
        raise TypeError("Expected a value to hash, got one that is nested too deeply.") from error


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of all bytes of named tensors, such as the weights of a model."""
    with ThreadPoolExecutor(THREADS) as pool:  # hashing leaves the interpreter free
        hashes = pool.map(_tensor, tensors.values())
        return _digest("tensors", *sorted(map(_digest, tensors, hashes))).hex()


class _Hasher:
    """Hash values and what they hold, each object once."""

    def __init__(self, stands_for: Callable[[Any], Any]) -> None:
        self.stands_for = stands_for
        self.known: dict[int, bytes] = {}
        self.kept: list[Any] = []  # or another object could get the address of one that is known
        self.above: dict[int, int] = {}  # the depth of those that are being hashed
        self.reached = math.inf  # the least depth that something below refers to

    def of(self, value: Any) -> bytes:
        """Return the hash of a value."""
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
            return _digest(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        if id(value) in self.known:
            return self.known[id(value)]
        if id(value) in self.above:  # it holds itself
            self.reached = min(self.reached, self.above[id(value)])
            return _digest("above", str(len(self.above) - self.above[id(value)]))
        self.kept.append(value)
        if len(self.kept) > MOST_PARTS:
            raise TypeError(f"Expected a value of at most {MOST_PARTS} parts to hash, got more.")
        depth, before = len(self.above), self.reached
        self.above[id(value)], self.reached = depth, math.inf
        try:
            found = self._parts(value)
        finally:
            del self.above[id(value)]
        if self.reached >= depth:
            self.known[id(value)] = found
            self.reached = before
        else:  # what it refers to is not the same elsewhere
            self.reached = min(before, self.reached)
        return found

    def _parts(self, value: Any) -> bytes:
        other = self.stands_for(value)
        if other is not value:
            return _digest("stands for", self.of(other))
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            value = np.asarray(value)
            return _digest("array", str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, list | tuple):
            return _digest(_name(type(value)), *map(self.of, value), *self._beside(value))
        if isinstance(value, Mapping):
            pairs = (_digest(self.of(key), self.of(each)) for key, each in value.items())
            return _digest("mapping", *sorted(pairs), *self._beside(value))
        if isinstance(value, set | frozenset):
            return _digest("set", *sorted(map(self.of, value)), *self._beside(value))
        if isinstance(value, enum.Enum):
            return _digest(_name(type(value)), value.name)
        if isinstance(value, PurePath):
            return _digest("path", str(value))
        if isinstance(value, uuid.UUID):  # it names something, and changes nothing
            return _digest("uuid")
        return self._code(value)

    def _beside(self, value: Any) -> list[bytes]:
        """Return the hash of what a collection holds besides its elements, if anything."""
        return [self.of(vars(value))] if getattr(value, "__dict__", None) else []

    def _code(self, value: Any) -> bytes:
        """Return the hash of code, or of any other object."""
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            held = [value.__code__, value.__defaults__, value.__kwdefaults__, cells, vars(value)]
            return _digest("function", _name(value), self.of(held))
        if isinstance(value, types.CodeType):
            names = (value.co_names, value.co_varnames, value.co_freevars)
            return _digest("code", value.co_code, repr(names), self.of(value.co_consts))
        if isinstance(value, types.MethodType):
            return _digest("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return _digest("partial", *map(self.of, (value.func, value.args, value.keywords)))
        if isinstance(value, staticmethod | classmethod):
            return _digest(type(value).__name__, self.of(value.__func__))
        if isinstance(value, property):
            return _digest("property", *map(self.of, (value.fget, value.fset, value.fdel)))
        if isinstance(value, weakref.ref):
            return _digest("reference", self.of(value()))
        if isinstance(value, types.ModuleType | logging.Logger):
            return _digest("named", value.__name__ if isinstance(value, types.ModuleType) else value.name)
        if isinstance(
            value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
        ):
            owner = getattr(value, "__self__", None)
            return _digest("builtin", _name(value), self.of(owner))
        return _digest("object", self.of(type(value)), self.of(_attributes(value)))

    def _class(self, kind: type) -> bytes:
        """Return the hash of a class: all that it derives from, by name; its code if a function made it."""
        made = [part for part in kind.__mro__ if "<locals>" in part.__qualname__]
        code = [{k: v for k, v in vars(part).items() if k not in _OF_CLASS} for part in made]
        return _digest("class", *map(_name, kind.__mro__), self.of(code))

    def _module(self, module: nn.Module) -> bytes:
        """Return the hash of a module: class, weights, children, and all else that was put on it."""
        held = {k: v for k, v in vars(module).items() if k not in _OF_TORCH and not (v is None or v == {})}
        parts = (module._parameters, module._buffers, module._modules, held)
        return _digest("module", self.of(type(module)), *map(self.of, map(dict, parts)))


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds.

    Raises:
        TypeError: that cannot be told.
    """
    kinds = type(value).__mro__[:-1]
    plain = hasattr(value, "__dict__") or any("__slots__" in vars(kind) for kind in kinds)
    if not plain or not all(kind.__flags__ & _OF_PYTHON for kind in kinds):  # it may hold what nobody sees
        raise TypeError(
            f"Expected values, tensors, modules and code to hash, got a {type(value).__qualname__}."
        )
    parts = [pair for kind in kinds for pair in vars(kind).items()]
    slots = [name for name, part in parts if isinstance(part, types.MemberDescriptorType)]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _name(value: Any) -> str:
    """Return the name of code; the host names packages of packs after their folders, which differ."""
    module = str(getattr(value, "__module__", None)).rpartition(".")[2]
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _tensor(tensor: Tensor) -> bytes:
    """Return the hash of a tensor: dtype, shape and bytes. A parameter is as good as its tensor."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        if not hasattr(tensor, "__tensor_flatten__"):
            raise TypeError(f"Expected plain tensors to hash, got a {type(tensor).__qualname__}.")
        names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        parts = [_tensor(getattr(tensor, name)) for name in names]
        return _digest(type(tensor).__qualname__, repr(context), *parts)
    if tensor.is_meta:
        return _digest("meta", str(tensor.dtype), str(tuple(tensor.shape)))
    flat = tensor.detach().cpu().contiguous().flatten()
    return _digest("tensor", str(tensor.dtype), str(tuple(tensor.shape)), flat.view(torch.uint8).numpy().data)


def _digest(*parts: Any) -> bytes:
    """Return the hash of texts and bytes, each told from the next."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
