"""Adapters: the switch, the way in and the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import CHANNELS, SIZE, WIDTH, Network, network, random

from domaingallery_core.adapter_kinds import TITLES, describe
from domaingallery_core.adapters import Adapter, ordinary_weights
from domaingallery_core.config import AdapterConfig
from domaingallery_core.errors import AdapterError
from domaingallery_core.generators import generator

LAYERS = 8  # two attentions of four
KINDS = ("lora", "dora", "loha", "lokr")


def inputs():
    return random(2, CHANNELS, SIZE, SIZE, seed=1), torch.zeros(2), random(2, 3, WIDTH, seed=2)


def inject(module, config=None, seed=0):
    return Adapter.inject(module, config or AdapterConfig(), generator(seed, "adapter"))


def filled(adapter, seed=5):
    """Give both halves of an adapter random weights."""
    state = adapter.state_dict()
    adapter.load(
        {k: v if k.endswith("alpha") else 0.3 * random(*v.shape, seed=seed) for k, v in state.items()}
    )
    return adapter


def snapshot(module):
    """Return everything that a removal must bring back, by identity."""
    return (
        [(name, id(child)) for name, child in module.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in module.named_parameters()],
        [(name, id(b)) for name, b in module.named_buffers()],
        sorted(module.__dict__),
        [child.training for child in module.modules()],
    )


@pytest.mark.parametrize(("kind", "parts"), [("lora", 2), ("dora", 3), ("loha", 4), ("lokr", 2)])
def test_a_fresh_adapter_changes_nothing(kind, parts):
    model = network()
    before = model(*inputs())

    with inject(model, AdapterConfig(kind=kind)) as adapter:
        assert len(adapter.parameters()) == parts * LAYERS
        assert all(p.requires_grad and p.dtype == torch.float32 for p in adapter.parameters())
        if kind == "dora":  # a norm is divided by itself
            torch.testing.assert_close(model(*inputs()), before)
        else:
            assert torch.equal(model(*inputs()), before)


def test_a_and_b_start_as_in_the_reference():
    with inject(network(), AdapterConfig(rank=8, alpha=8.0)) as adapter:
        weights = adapter.named_parameters()
        a = torch.cat([w.detach().flatten() for name, w in weights.items() if "lora_A" in name])
        b = torch.cat([w.detach().flatten() for name, w in weights.items() if "lora_B" in name])

    assert float(a.std()) == pytest.approx(1 / 8, rel=0.15)
    assert float(b.abs().max()) == 0
    assert all(w.dtype == torch.float32 and w.requires_grad for w in weights.values())


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (2, 6.0)])
def test_the_adapter_equals_merged_weights(rank, alpha):
    model = network()
    with filled(inject(model, AdapterConfig(rank=rank, alpha=alpha))) as adapter:
        found, state = model(*inputs()), adapter.state_dict()

    merged = network()
    for name in {key.rsplit(".lora_", 1)[0] for key in state if "lora_" in key}:
        delta = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        merged.get_submodule(name).weight += alpha / rank * delta
    torch.testing.assert_close(found, merged(*inputs()), rtol=1e-4, atol=1e-5)


def expected_delta(kind, parts, scale, weight):
    """Write out what each kind adds to a weight."""
    if kind == "lora":
        return scale * parts["lora_B.weight"] @ parts["lora_A.weight"]
    if kind == "loha":
        one, two = parts["hada_w1_a"] @ parts["hada_w1_b"], parts["hada_w2_a"] @ parts["hada_w2_b"]
        return scale * one * two
    if kind == "lokr":
        full = "lokr_w2" in parts
        second = parts["lokr_w2"] if full else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
        return (1 if full else scale) * torch.kron(parts["lokr_w1"], second)
    merged = weight + scale * parts["lora_B.weight"] @ parts["lora_A.weight"]
    return parts["magnitude"][:, None] * merged / merged.norm(dim=1, keepdim=True) - weight


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_equals_merged_weights(kind, rank):
    model = network()
    with filled(inject(model, AdapterConfig(rank=rank, alpha=2.0, kind=kind))) as adapter:
        found, state = model(*inputs()), adapter.state_dict()

    merged = network()
    for name in {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}:
        parts = {
            key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(name)
        }
        weight = merged.get_submodule(name).weight
        weight += expected_delta(kind, parts, 2.0 / rank, weight)
    torch.testing.assert_close(found, merged(*inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_and_imported_is_the_same_adapter(kind):
    model = network()
    with filled(inject(model, AdapterConfig(rank=1, alpha=3.0, kind=kind))) as adapter:
        state = adapter.state_dict()

        again = adapter.imported(adapter.exported(state))

        assert again.keys() == state.keys()
        assert all(torch.allclose(again[name], tensor, rtol=1e-5) for name, tensor in state.items())
        assert describe(adapter.exported(state)) == (kind, 1, 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_and_repeats_with_the_seed(kind):
    model = network()

    def outputs():
        torch.manual_seed(3)
        return [model(*inputs()) for _ in range(2)]

    with torch.random.fork_rng(), filled(inject(model, AdapterConfig(kind=kind, dropout=0.5))) as adapter:
        first, second = outputs()

        assert not torch.equal(first, second)
        assert all(torch.equal(a, b) for a, b in zip((first, second), outputs(), strict=True))
        assert all(bool(torch.isfinite(p).all()) for p in adapter.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_base_bit_for_bit_and_may_be_nested(kind):
    model = network()
    base = model(*inputs())
    with filled(inject(model, AdapterConfig(kind=kind))) as adapter:
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
        with filled(inject(model, AdapterConfig(kind=kind))):
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
    model = network()
    for _ in range(2):
        inject(model).remove()
    adapter = inject(model)
    adapter.remove()
    adapter.remove()


def test_a_failure_during_injection_leaves_the_model_as_it_was(monkeypatch):
    model = network()
    before = snapshot(model)
    monkeypatch.setattr(torch, "zeros", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        inject(model)

    assert snapshot(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_is_left_alone_and_the_seed_decides(kind):
    state, config = torch.get_rng_state(), AdapterConfig(kind=kind)
    with (
        inject(network(), config, seed=3) as first,
        inject(network(), config, seed=3) as second,
        inject(network(), config, seed=4) as third,
    ):
        a, b, c = (adapter.state_dict() for adapter in (first, second, third))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


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
    config = AdapterConfig(kind=kind)
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


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_another_model_is_refused_and_changes_nothing(kind):
    """Layers of another width, and of other names, come out of `imported` to be named by `load`."""
    config = AdapterConfig(kind=kind, rank=2)
    wide, named = network(), network()
    wide.attn2.to_k = nn.Linear(2 * WIDTH, WIDTH, bias=False)
    named.attn3 = named.attn2
    del named.attn2
    for other in (wide, named):
        with inject(other, AdapterConfig(kind=kind, rank=2, targets=r"attn\d\..*")) as adapter:
            foreign = adapter.exported(adapter.state_dict())
        with filled(inject(network(), config)) as adapter:
            before = adapter.state_dict()

            with pytest.raises(AdapterError, match=f"Expected a {TITLES[kind]} for 8 layers"):
                adapter.load(adapter.imported(foreign))

            assert all(torch.equal(v, adapter.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_larger_than_a_layer_is_refused(kind):
    with pytest.raises(AdapterError, match=r"rank of at most 8 for the layer 'attn1.to_q', got 9"):
        inject(network(), AdapterConfig(rank=9, kind=kind))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (AdapterConfig(rank=9), "at most 8"),
        (AdapterConfig(targets="nothing"), "got none"),
        (AdapterConfig(targets="("), "regular expression"),
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


@pytest.mark.parametrize("targets", ["linear", r"proj_(in|out)"])
def test_targets_may_be_other_layers(targets):
    config = AdapterConfig(rank=2, targets=targets)
    with inject(network(), config) as adapter:
        assert len(adapter.parameters()) == 2 * (LAYERS + 2 if targets == "linear" else 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_bases_keep_a_float32_adapter(kind, dtype):
    model = network().to(dtype)
    x, level, context = (tensor.to(dtype) for tensor in inputs())
    with filled(inject(model, AdapterConfig(kind=kind))) as adapter:
        out = model(x, level, context)
        out.float().square().sum().backward()

        assert out.dtype == dtype
        assert all(bool(torch.isfinite(p.grad).all()) for p in adapter.parameters())
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in adapter.parameters())


def inference_network():
    with torch.inference_mode():
        model = Network()
        model.proj_out.weight = model.proj_in.weight = nn.Parameter(
            torch.eye(WIDTH)[:, :CHANNELS].contiguous()
        )
        model.proj_out = nn.Linear(WIDTH, CHANNELS)
    return model


def test_ordinary_weights_lets_gradients_through_without_a_copy():
    model = inference_network()
    before = snapshot(model)
    storage = model.attn1.to_q.weight.data_ptr()
    assert model.attn1.to_q.weight.is_inference() and model.shift.is_inference()

    with ordinary_weights(model), inject(model) as adapter:
        layer = model.attn1.to_q.base_layer
        assert layer.weight.data_ptr() == storage and not layer.weight.is_inference()
        assert not model.shift.is_inference()
        filled(adapter)
        model(*inputs()).square().sum().backward()
        assert all(float(p.grad.abs().max()) > 0 for p in adapter.parameters())

    assert snapshot(model) == before


@pytest.mark.parametrize("order", ["weights first", "adapter first"])
def test_the_weights_come_back_after_an_interrupt_in_either_order(order):
    model = inference_network()
    before = snapshot(model)

    with pytest.raises(KeyboardInterrupt):
        if order == "weights first":
            with ordinary_weights(model), inject(model):
                raise KeyboardInterrupt
        else:
            with inject(model), ordinary_weights(model):
                raise KeyboardInterrupt

    assert snapshot(model) == before


def test_it_all_works_from_within_inference_mode():
    """The host runs its nodes in inference mode; the trainer leaves it only for the loop."""
    model = inference_network()
    before = snapshot(model)
    with torch.inference_mode(), ordinary_weights(model), inject(model) as adapter:
        assert not any(p.is_inference() for p in adapter.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            x, level, context = (tensor.clone() for tensor in inputs())
            filled(adapter)
            model(x, level, context).sum().backward()
        assert all(not tensor.is_inference() for tensor in adapter.state_dict().values())

    assert snapshot(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_ordinary_weights_takes_every_storage_format(dtype):
    with torch.inference_mode():
        layer = nn.Linear(4, 4).to(dtype)
    raw = layer.weight.view(torch.uint8).clone()

    with ordinary_weights(layer):
        assert layer.weight.dtype == dtype and not layer.weight.is_inference()
        assert torch.equal(layer.weight.detach().view(torch.uint8), raw)


def test_tied_weights_stay_tied():
    with torch.inference_mode():
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
    pair = nn.ModuleList([first, second])

    with ordinary_weights(pair):
        assert pair[0].weight is pair[1].weight and not pair[0].weight.is_inference()
    assert pair[0].weight is pair[1].weight and pair[0].weight.is_inference()
