"""Hashes are of the content, and of nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import conditions, latents, network

from domaingallery_core.data.datasets import Dataset, Examples
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
    data = Dataset(target=Examples(latents(5, 1)), source=Examples(latents(6, 2)))
    more = replace(data, more=(Dataset(target=Examples(latents(5, 1))),))

    hashes = [fingerprint(each) for each in (data, more, data.target, data.source, conditions())]

    assert len(set(hashes)) == 5
    assert fingerprint(conditions()) == hashes[-1]
    assert fingerprint(data) == fingerprint(data.map(torch.clone)) != fingerprint(data.map(lambda t: t + 1))


def test_another_process_finds_the_same_hash():
    given = "{'set': {'b', 'a', 'c'}, 'numbers': [1, 2.5, True, None]}"
    code = f"from domaingallery_core.fingerprints import fingerprint; print(fingerprint({given}))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == fingerprint({"numbers": [1, 2.5, True, None], "set": {"a", "b", "c"}})


@pytest.mark.parametrize("value", [threading.Lock(), iter([1]), object(), [{"a": (x for x in "ab")}]])
def test_what_cannot_be_told_has_no_hash(value):
    with pytest.raises(TypeError, match="to hash, got a"):
        fingerprint(value)


def test_an_open_file_has_no_hash(tmp_path):
    with (tmp_path / "a").open("w") as file, pytest.raises(TypeError):
        fingerprint({"file": file})


def scaled(by, also=None):
    return lambda x: x * by + (also or 0)


class Scale:
    """Be a patch with a number."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x * self.by


def local_class(base, method=None):
    return type("Local", (base,), {"__qualname__": "local_class.<locals>.Local", "run": method})


def test_code_counts_by_what_it_does_and_has_closed_over():
    same = [
        (scaled(2), scaled(2)),
        (Scale(2), Scale(2)),
        (Scale(2).__call__, Scale(2).__call__),
        (partial(scaled, 1), partial(scaled, 1)),
        (scaled(torch.ones(2)), scaled(torch.ones(2))),
        (scaled({"by": [1]}), scaled({"by": [1]})),
        (local_class(int, lambda self: 1), local_class(int, lambda self: 1)),
    ]
    others = [
        (scaled(2), scaled(3)),
        (scaled(2), lambda x: x * 2),
        (lambda x: x + 1, lambda x: x + 2),
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
    ]

    for one, other in same:
        assert fingerprint(one) == fingerprint(other)
    for one, other in others:
        assert fingerprint(one) != fingerprint(other)


class Colour(Enum):
    RED = 1
    BLUE = 2


class Listed(list):
    """Hold something beside its elements."""

    def __init__(self, elements, beside):
        super().__init__(elements)
        self.beside = beside


def ring(*values):
    """Return objects that hold each other in a ring."""
    parts = [Plain(value) for value in values]
    for i, part in enumerate(parts):
        part.next = parts[(i + 1) % len(parts)]
    return parts[0]


def test_objects_that_hold_themselves_have_a_hash():
    assert fingerprint(ring(1, 2, 3)) == fingerprint(ring(1, 2, 3)) != fingerprint(ring(1, 2, 4))
    shared = ring(1, 2)
    assert fingerprint([shared, shared]) == fingerprint([ring(1, 2), ring(1, 2)])


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
