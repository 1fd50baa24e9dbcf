"""Hashes are of the content, and of nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import conditions, latents, network

from domaingallery_core.datasets import Dataset, Examples
from domaingallery_core.fingerprints import differences, fingerprint, weights_hash


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


@pytest.mark.parametrize("code", [{"patch": lambda x: x}, [object], (fingerprint,), object()])
def test_code_has_no_hash(code):
    with pytest.raises(TypeError):
        fingerprint(code)


def test_identities_that_agree_differ_in_nothing():
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [
        "a.b was 1 and is 2",
        "c was None and is 3",
    ]


def test_the_hash_of_a_model_knows_its_weights():
    model = network()

    assert weights_hash(model) == weights_hash(network()) != weights_hash(network(1))
    next(model.parameters()).data[0, 0] += 1e-3
    assert weights_hash(model) != weights_hash(network())
