"""Adapters of several models are one trainable: one switch, one state; all or none of it is taken over."""

from __future__ import annotations

import pytest
import torch
from toys import filled, inject, inputs, network, snapshot

from domaingallery_core.errors import AdapterError
from domaingallery_core.files.formats.comfyui import TEXT
from domaingallery_core.trainables.together import Adapters
from domaingallery_core.trainables.trainable import Trainable


def made(seed=5):
    """Return two networks, and adapters with random weights on both."""
    models = network(0), network(1)
    first, second = (filled(inject(model), seed + i) for i, model in enumerate(models))
    return models, Adapters({"": first, TEXT: second})


def test_it_is_what_a_run_trains():
    (one, other), both = made()

    assert isinstance(both, Trainable) and both.roots == (one, other)


def test_names_say_whose_each_weight_is_and_a_prefix_is_for_its_own():
    _, both = made()
    state = both.state_dict()
    own = {name for name in state if name.startswith(TEXT)}

    assert len(own) == len(state) / 2 and {f"{TEXT}{name}" for name in state.keys() - own} == own
    assert [*both.named_parameters()] == [name for name in state if not name.endswith("alpha")]
    assert both.exported(state).keys() == state.keys()


def test_one_switch_turns_all_off_and_may_be_nested():
    models, both = made()
    bases = [network(seed)(*inputs()) for seed in (0, 1)]

    with both.off(), both.off():
        assert all(torch.equal(m(*inputs()), base) for m, base in zip(models, bases, strict=True))
    assert not any(torch.equal(m(*inputs()), base) for m, base in zip(models, bases, strict=True))


def test_a_state_is_taken_over_by_all():
    _, source = made()
    _, both = made(seed=9)

    both.load(source.state_dict())

    assert all(torch.equal(t, source.state_dict()[name]) for name, t in both.state_dict().items())


@pytest.mark.parametrize("take", ["load", "begin_with"])
def test_what_does_not_fit_one_is_taken_over_by_none(take):
    _, both = made()
    before, given = both.state_dict(), {name: tensor + 1 for name, tensor in made(9)[1].state_dict().items()}
    broken = next(name for name in given if name.startswith(TEXT) and "lora_A" in name)
    given |= {name: before[name] for name in given if name.endswith("alpha")}
    given[broken] = given[broken][:, 1:]

    with pytest.raises(AdapterError, match=r"attn1\.to_q\.lora_A\.weight is \(4, 7\) and not \(4, 8\)"):
        getattr(both, take)(given)

    assert all(torch.equal(tensor, before[name]) for name, tensor in both.state_dict().items())


def test_one_that_has_nothing_to_begin_with_stays_as_it_is():
    _, both = made()
    before = both.state_dict()
    given = {n: t for n, t in made(9)[1].state_dict().items() if not n.startswith(TEXT)}

    both.begin_with(given)

    found = both.state_dict()
    assert all(torch.equal(found[n], given[n]) for n in given)
    assert all(torch.equal(found[n], before[n]) for n in before.keys() - given.keys())


def test_each_is_removed_by_who_made_it():
    models = network(0), network(1)
    before = [snapshot(model) for model in models]

    with inject(models[0]) as first, inject(models[1]) as second:
        Adapters({"": first, TEXT: second})

    assert [snapshot(model) for model in models] == before
