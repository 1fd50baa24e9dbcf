"""Hashes are of the content, and of nothing else."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import threading
import uuid
import weakref
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import conditions, latents, network, part

from domaingallery_core import fingerprints
from domaingallery_core.fingerprints import fingerprint, tensors_hash
from domaingallery_core.run.identity import differences


class Plain:
    """Have the repr of every object, which tells its address."""

    def __init__(self, value=1):
        self.value = value


def value(**changes):
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(changes.get("weight", 1.0))
        module.bias.zero_()
    return {"module": module, "list": [1, 2.5, "text", None], "t": torch.ones(3, dtype=torch.bfloat16),
            "set": {"b", "a"}, **changes.get("more", {})}  # fmt: skip


def test_a_hash_is_of_the_content():
    first = fingerprint(value())

    assert first == fingerprint(value()) == fingerprint(dict(reversed(value().items())))
    others = [value(weight=2.0), value(more={"list": [1, 2.5, "texts", None]}), value(more={"x": 1})]
    others += [value(more={"t": torch.ones(3)}), value(more={"t": torch.ones(3, 1, dtype=torch.bfloat16)})]
    others += [value(more={"list": [1, 2.5, "text", "None"]}), value(more={"set": {"b"}})]
    assert len({first, *map(fingerprint, others)}) == 8


def test_an_object_counts_by_what_it_holds_never_by_its_address():
    assert fingerprint([Plain()]) == fingerprint([Plain()]) != fingerprint([Plain(2)])
    assert fingerprint({Plain(): 1, Plain(2): 2}) == fingerprint({Plain(2): 2, Plain(): 1})


def test_data_and_prompts_have_a_hash_of_all_they_hold():
    data = part(latents(5, 1), latents(6, 2))

    hashes = [fingerprint(each) for each in (data, data.target, data.source, conditions())]

    assert len(set(hashes)) == 4
    assert fingerprint(conditions()) == hashes[-1]
    assert fingerprint(data) == fingerprint(data.map(torch.clone)) != fingerprint(data.map(lambda t: t + 1))


def test_another_process_finds_the_same_hash():
    given = "{'set': {'b', 'a', 'c'}, 'numbers': [1, 2.5, True, None]}"
    code = f"from domaingallery_core.fingerprints import fingerprint; print(fingerprint({given}))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == fingerprint({"numbers": [1, 2.5, True, None], "set": {"a", "b", "c"}})


class Unknown(torch.Tensor):
    """Be a tensor of which nobody knows what else it holds."""


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), iter([1]), object(), [{"a": (x for x in "ab")}], torch.ones(2).as_subclass(Unknown)],
)
def test_what_cannot_be_told_has_no_hash(value):
    with pytest.raises(TypeError, match="to hash, got a"):
        fingerprint(value)


def test_an_open_file_has_no_hash(tmp_path):
    with (tmp_path / "a").open("w") as file, pytest.raises(TypeError):
        fingerprint({"file": file})


def test_what_has_too_many_parts_has_no_hash(monkeypatch):
    monkeypatch.setattr(fingerprints, "MOST_PARTS", 10)

    assert fingerprint([[] for _ in range(9)])
    with pytest.raises(TypeError, match="at most 10 parts to hash, got more"):
        fingerprint([[] for _ in range(10)])


def scaled(by, also=None):
    return lambda x: x * by + (also or 0)


def unfinished(by):
    """Return a function that refers to what is never set."""

    def patch(x):
        return x * by + later

    if by is None:
        later = 1
    return patch


class Scale:
    """Be a patch with a number."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


class Slotted:
    """Hold what it holds in slots, one of them empty."""

    __slots__ = ("__by", "__weakref__", "empty")

    def __init__(self, by):
        self.__by = by


class SlottedMore(Slotted):
    """Hold one thing more, in a slot that is named without a tuple."""

    __slots__ = "more"

    def __init__(self, by, more):
        super().__init__(by)
        self.more = more


@dataclass
class Options:
    """Be a dataclass, on which code may put other things as well."""

    by: int

    def also(self, value):
        self.value = value
        return self


class Packed(torch.Tensor):
    """Hold its values as another tensor and a number, as quantized weights do."""

    @classmethod
    def of(cls, inner, scale):
        packed = torch.zeros(2).as_subclass(cls)
        packed.inner, packed.scale = torch.tensor(inner), scale
        return packed

    def __tensor_flatten__(self):
        return ["inner"], {"scale": self.scale}


def local_class(base, method=None):
    return type("Local", (base,), {"__qualname__": "local_class.<locals>.Local", "run": method})


def patch_of(module):
    """Return a class as a module of a host's pack defines it."""
    return type("Patch", (), {"__module__": module})


def used(path):
    """Return a path that remembers what was asked of it."""
    return path if hash(path) and str(path) else None


def test_code_and_objects_count_by_what_they_do_and_hold():
    referred = [Plain(1), Plain(1), Plain(2)]
    to_one, to_the_same, to_two = map(weakref.ref, referred)
    same = [
        (scaled(2), scaled(2)),
        (Scale(2), Scale(2)),
        (Scale(2).__call__, Scale(2).__call__),
        (partial(scaled, 1), partial(scaled, 1)),
        (scaled(torch.ones(2)), scaled(torch.ones(2))),
        (scaled({"by": [1]}), scaled({"by": [1]})),
        (local_class(int, lambda self: 1), local_class(int, lambda self: 1)),
        (local_class(int, property(lambda self: 1)), local_class(int, property(lambda self: 1))),
        (unfinished(2), unfinished(2)),
        (to_one, to_the_same),
        (Slotted(2), Slotted(2)),
        (Options(2).also(1), Options(2).also(1)),
        (Packed.of([1, 2], 0.5), Packed.of([1, 2], 0.5)),
        (patch_of("a_pack.blur"), patch_of("custom_nodes/a_pack-main.blur")),
        (Speed.FAST, Speed.FAST),
        (used(Path("a/b")), Path("a/b")),
        (", ".join, ", ".join),
        (str.upper, str.upper),
        (uuid.UUID(int=1), uuid.UUID(int=2)),
    ]
    others = [
        (scaled(2), scaled(3)),
        (scaled(2), lambda x: x * 2),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.real, lambda x: x.imag),
        (lambda x, y=1: x, lambda x, y=2: x),
        (Scale(2), Scale(3)),
        (Scale(2).__call__, Scale(3).__call__),
        (partial(scaled, 1), partial(scaled, 2)),
        (scaled(torch.ones(2)), scaled(torch.zeros(2))),
        (local_class(int, lambda self: 1), local_class(int, lambda self: 2)),
        (local_class(int), local_class(float)),
        (Path("a"), Path("b")),
        (Colour.RED, Colour.BLUE),
        (np.float32(1), np.float64(1)),
        (Listed([1], 2), Listed([1], 3)),
        (local_class(int, staticmethod(lambda: 1)), local_class(int, staticmethod(lambda: 2))),
        (local_class(int, property(lambda self: 1)), local_class(int, property(lambda self: 2))),
        (unfinished(2), unfinished(3)),
        (to_one, to_two),
        (Slotted(2), Slotted(3)),
        (SlottedMore(2, 3), SlottedMore(2, 4)),
        (SlottedMore(2, 3), SlottedMore(3, 3)),
        (Options(2), Options(3)),
        (Options(2).also(1), Options(2).also(2)),
        (Packed.of([1, 2], 0.5), Packed.of([1, 3], 0.5)),
        (Packed.of([1, 2], 0.5), Packed.of([1, 2], 0.25)),
        (torch.ones(2, device="meta"), torch.ones(3, device="meta")),
        (patch_of("a_pack.blur"), patch_of("a_pack.sharpen")),
        (math, json),
        (len, sum),
        (", ".join, "; ".join),
        (str.upper, str.lower),
        (logging.getLogger("one"), logging.getLogger("other")),
    ]

    for one, other in same:
        assert fingerprint(one) == fingerprint(other)
    for one, other in others:
        assert fingerprint(one) != fingerprint(other)


class Colour(Enum):
    RED = 1
    BLUE = 2


class Speed(Enum):
    """Have a member whose value has no hash; it counts by its name."""

    FAST = object()


class Listed(list):
    """Hold something beside its elements."""

    def __init__(self, elements, beside):
        super().__init__(elements)
        self.beside = beside


def ring(*values):
    """Return objects that hold each other in a ring."""
    parts = [Plain(value) for value in values]
    for i, one in enumerate(parts):
        one.next = parts[(i + 1) % len(parts)]
    return parts[0]


def test_objects_that_hold_themselves_have_a_hash():
    assert fingerprint(ring(1, 2, 3)) == fingerprint(ring(1, 2, 3)) != fingerprint(ring(1, 2, 4))
    shared = ring(1, 2)
    assert fingerprint([shared, shared]) == fingerprint([ring(1, 2), ring(1, 2)])
    assert fingerprint([[shared], shared]) == fingerprint([[ring(1, 2)], ring(1, 2)]), "at whatever depth"


def test_what_refers_to_something_above_it_is_not_taken_for_the_same_elsewhere():
    def pair(back_to_the_first):
        first, second = {}, {"more": 1}
        first["part"] = {"back": first}
        second["part"] = first["part"] if back_to_the_first else {"back": second}
        return [first, second]

    assert fingerprint(pair(True)) == fingerprint(pair(True)) != fingerprint(pair(False))


def test_what_is_held_many_times_is_looked_at_once(monkeypatch):
    """Else the time would double with each of these."""
    monkeypatch.setattr(fingerprints, "MOST_PARTS", 100)
    value = ["last"]
    for _ in range(25):
        value = {"one": value, "two": value}
        value["itself"] = value

    assert fingerprint(value) != fingerprint([value])


def test_something_else_may_be_hashed_in_place_of_an_object():
    def named(name):
        return lambda value: name if isinstance(value, type(threading.Lock())) else value

    locks = [{"lock": threading.Lock(), "rest": 1} for _ in range(2)]
    found = [fingerprint(lock, named("a lock")) for lock in locks]

    assert found[0] == found[1] != fingerprint(locks[0], named("another"))
    assert found[0] != fingerprint({"lock": "a lock", "rest": 1}), "it stands for it, and is not it"


def test_what_is_nested_too_deeply_has_no_hash():
    value = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(TypeError, match="nested too deeply"):
        fingerprint(value)


def test_a_module_counts_with_what_was_hooked_into_it():
    plain, hooked, other = (value()["module"] for _ in range(3))
    hooked.register_forward_hook(lambda module, given, out: out * 2)
    other.forward = lambda x: x

    assert len({fingerprint(module) for module in (plain, hooked, other, value()["module"])}) == 3


def test_a_module_counts_without_what_says_nothing_of_what_it_does():
    before = fingerprint(value()["module"])
    module = value()["module"].eval()
    module.register_forward_hook(lambda module, given, out: out * 2).remove()
    module.note, module.table = None, {}

    assert fingerprint(module) == before


def test_identities_that_agree_differ_in_nothing():
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [
        "a.b was 1 and is 2",
        "c was None and is 3",
    ]


def test_the_hash_of_weights_knows_every_byte_of_them():
    model = network()
    first = tensors_hash(model.state_dict())

    assert first == tensors_hash(dict(reversed(network().state_dict().items())))
    assert first != tensors_hash(network(1).state_dict())
    for tensor in (model.attn1.to_q.weight.data, model.shift):
        tensor.view(-1)[-1] += 1e-6
        assert tensors_hash(model.state_dict()) != first
        first = tensors_hash(model.state_dict())
