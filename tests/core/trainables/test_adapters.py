"""Adapters: the switch, the way in and the way out."""

from __future__ import annotations

import re
import time

import pytest
import torch
from torch import nn
from toys import LAYERS, WIDTH, filled, inject, inputs, network, snapshot

from domaingallery_core.errors import AdapterError
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import target_modules
from domaingallery_core.trainables.kinds import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_base_bit_for_bit_and_may_be_nested(kind):
    model = network()
    base = model(*inputs())
    with filled(inject(model, AdapterSettings(kind=kind))) as adapter:
        on = model(*inputs())
        with adapter.off():
            with adapter.off():
                assert torch.equal(model(*inputs()), base)
            assert torch.equal(model(*inputs()), base)

        assert torch.equal(model(*inputs()), on)
        assert not torch.equal(on, base)
        assert all(p.requires_grad for p in adapter.parameters())


def test_off_ends_with_an_exception():
    model = network()
    with filled(inject(model)) as adapter:
        on = model(*inputs())
        with pytest.raises(KeyboardInterrupt), adapter.off():
            raise KeyboardInterrupt

        assert torch.equal(model(*inputs()), on)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_removal_puts_the_very_same_objects_back(failure, kind):
    model = network()
    model.attn1.to_q.weight.requires_grad_(True)
    model.proj_in.train()
    before, output = snapshot(model), model(*inputs())

    def use():
        with filled(inject(model, AdapterSettings(kind=kind))):
            if failure:
                raise failure

    if failure:
        with pytest.raises(failure):
            use()
    else:
        use()

    assert snapshot(model) == before
    assert torch.equal(model(*inputs()), output)


def test_a_removed_model_takes_an_adapter_again():
    """The second acts as the first did, and removing it twice changes no more than once."""
    model = network()
    before, base, outputs = snapshot(model), model(*inputs()), []
    for _ in range(2):
        adapter = filled(inject(model))
        outputs.append(model(*inputs()))
        adapter.remove()
        adapter.remove()

    assert torch.equal(*outputs) and not torch.equal(outputs[0], base)
    assert snapshot(model) == before


def test_a_removed_adapter_has_no_weights_and_switches_nothing():
    model = network()
    adapter = inject(model)
    adapter.remove()
    base = model(*inputs())

    assert adapter.named_parameters() == {} and adapter.parameters() == [] and adapter.state_dict() == {}
    with adapter.off():
        assert torch.equal(model(*inputs()), base)


def test_a_failure_during_injection_leaves_the_model_as_it_was(monkeypatch):
    model = network()
    before = snapshot(model)
    monkeypatch.setattr(torch, "zeros", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        inject(model)

    assert snapshot(model) == before


def test_the_state_has_the_keys_of_a_lora_and_is_a_copy():
    with filled(inject(network())) as adapter:
        state = adapter.state_dict()
        state["attn1.to_q.lora_A.weight"].zero_()

        assert float(adapter.named_parameters()["attn1.to_q.lora_A.weight"].detach().abs().max()) > 0
        assert {k for k in state if k.startswith("attn2.to_out")} == {
            "attn2.to_out.0.lora_A.weight",
            "attn2.to_out.0.lora_B.weight",
            "attn2.to_out.0.alpha",
        }
        assert float(state["attn2.to_out.0.alpha"]) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_load_are_a_round_trip(kind):
    config = AdapterSettings(kind=kind)
    with filled(inject(network(), config)) as first, inject(network(), config) as second:
        second.load(first.state_dict())

        assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("attn1.to_q.lora_A.weight"), "is missing"),
        (lambda s: s.update({"mid.lora_A.weight": torch.zeros(4, 8)}), "mid.lora_A.weight is not part"),
        (lambda s: s.update({"attn1.to_q.lora_A.weight": torch.zeros(8, 8)}), r"\(8, 8\) and not \(4, 8\)"),
        (lambda s: s.update({"attn1.to_q.alpha": torch.tensor(8.0)}), "alpha is 8 and not 4"),
        (lambda s: s["attn1.to_q.lora_A.weight"].fill_(torch.nan), "not finite"),
    ],
)
def test_a_lora_of_another_model_is_refused_by_name_and_changes_nothing(change, named):
    with filled(inject(network())) as adapter:
        before = adapter.state_dict()
        state = adapter.state_dict()
        change(state)

        with pytest.raises(AdapterError, match=named):
            adapter.load(state)

        assert all(torch.equal(v, adapter.state_dict()[k]) for k, v in before.items())


def test_an_adapter_of_another_kind_is_refused_with_what_to_choose():
    with inject(network(), AdapterSettings(kind="loha")) as other:
        state = other.state_dict()

    message = "Expected a LoRA to go on with, got a LoHa. Choose 'loha' in Domain Training Options"
    with inject(network()) as adapter, pytest.raises(AdapterError, match=message):
        adapter.load(state)


@pytest.mark.parametrize("alpha", [0.1, 1000.1])
def test_an_alpha_that_a_file_rounds_is_the_same(alpha):
    with inject(network(), AdapterSettings(alpha=alpha)) as adapter:
        state = adapter.state_dict()
        adapter.load(state)

        with pytest.raises(AdapterError, match=r"alpha is .* and not"):
            adapter.load(state | {"attn1.to_q.alpha": torch.tensor(alpha * (1 + 1e-5))})


@pytest.mark.parametrize(("count", "end"), [(1, ""), (3, ""), (4, ", and 1 more"), (7, ", and 4 more")])
def test_of_many_differences_three_are_named_and_the_rest_counted(count, end):
    with inject(network()) as adapter:
        state = adapter.state_dict()
        for name in list(adapter.named_parameters())[:count]:
            del state[name]

        named = "; ".join([r"\S+ is missing"] * min(count, 3))
        with pytest.raises(AdapterError, match=rf"got one that differs: {named}{end}\. Use a LoRA made for"):
            adapter.load(state)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_another_model_is_refused_and_changes_nothing(kind):
    """Layers of another width, and of other names, come out of `imported` to be named by `load`."""
    config = AdapterSettings(kind=kind, rank=2)
    wide, named = network(), network()
    wide.attn2.to_k = nn.Linear(2 * WIDTH, WIDTH, bias=False)
    named.attn3 = named.attn2
    del named.attn2
    for other in (wide, named):
        with inject(other, AdapterSettings(kind=kind, rank=2, targets="attn[0-9].*")) as adapter:
            foreign = adapter.exported(adapter.state_dict())
        with filled(inject(network(), config)) as adapter:
            before = adapter.state_dict()

            with pytest.raises(AdapterError, match=f"Expected a {KINDS[kind].title} for 8 layers"):
                adapter.load(adapter.imported(foreign))

            assert all(torch.equal(v, adapter.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (AdapterSettings(rank=9), "at most 8"),
        (AdapterSettings(targets="nothing"), "got none"),
        (AdapterSettings(targets=" , "), "or patterns of layer names"),
    ],
)
def test_targets_and_ranks_that_do_not_fit_are_refused(config, named):
    model = network()
    before = snapshot(model)

    with pytest.raises(AdapterError, match=named):
        inject(model, config)

    assert snapshot(model) == before


def test_a_second_adapter_is_refused():
    model = network()
    with inject(model), pytest.raises(AdapterError, match="has one already"):
        inject(model)


@pytest.mark.parametrize("targets", ["linear", "proj_in, proj_out", "*proj*"])
def test_targets_may_be_other_layers(targets):
    config = AdapterSettings(rank=2, targets=targets)
    with inject(network(), config) as adapter:
        assert len(adapter.parameters()) == 2 * (LAYERS + 2 if targets == "linear" else 2)


NAMES = [
    f"{block}{part}"
    for block in ("", "input_blocks.1.1.transformer_blocks.0.", "down.x")
    for part in ("attn1.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_out.0", "attn3.to_q", "attn1.to_out.1",
                 "ff.net.0.proj", "ff.net.2", "ff.net.0", "attn1.to_qkv", "xattn1.to_q", "proj_in")
]  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "expression"),
    [
        ("attention", r"(?:.*\.)?attn[12]\.to_(?:q|k|v|out\.0)"),
        (
            "attention+feedforward",
            r"(?:.*\.)?(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2))",
        ),
        ("linear", r".*"),
    ],
)
def test_the_named_sets_select_the_layers_of_their_definition(targets, expression):
    class Named:
        def named_modules(self):
            return [(name, nn.Linear(1, 1)) for name in NAMES]

    assert list(target_modules(Named(), targets)) == [n for n in NAMES if re.fullmatch(expression, n)]


HOSTILE = ["([a-z0-9_.]+)+!", "*a" * 400 + "!", "[a-z" * 200, "?*" * 450, "[!]" * 300]


@pytest.mark.parametrize("targets", HOSTILE)
def test_no_pattern_takes_long(targets):
    long = nn.ModuleDict({"a" * 200: nn.Linear(1, 1)})
    before = time.perf_counter()

    with pytest.raises(AdapterError, match="targets"):
        target_modules(long, targets)

    assert time.perf_counter() - before < 1


def test_a_text_of_so_many_patterns_is_read_and_one_of_more_is_refused():
    assert len(target_modules(network(), "attn*".ljust(1000))) == LAYERS
    with pytest.raises(AdapterError, match="of at most 1000 characters"):
        target_modules(network(), "a " * 501)
