"""LoRA, DoRA, LoHa and LoKr: what each begins with, what it computes, and in what precision."""

from __future__ import annotations

import pytest
import torch
from toys import LAYERS, filled, inject, inputs, network

from domaingallery_core.errors import AdapterError
from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.kinds import KINDS, describe


@pytest.mark.parametrize(("kind", "parts"), [("lora", 2), ("dora", 3), ("loha", 4), ("lokr", 2)])
def test_a_fresh_adapter_changes_nothing(kind, parts):
    model = network()
    before = model(*inputs())

    with inject(model, AdapterSettings(kind=kind)) as adapter:
        assert len(adapter.parameters()) == parts * LAYERS
        assert all(p.requires_grad and p.dtype == torch.float32 for p in adapter.parameters())
        if kind == "dora":  # a norm is divided by itself
            torch.testing.assert_close(model(*inputs()), before)
        else:
            assert torch.equal(model(*inputs()), before)


def test_a_and_b_start_as_in_the_reference():
    with inject(network(), AdapterSettings(rank=8, alpha=8.0)) as adapter:
        weights = adapter.named_parameters()
        a = torch.cat([w.detach().flatten() for name, w in weights.items() if "lora_A" in name])
        b = torch.cat([w.detach().flatten() for name, w in weights.items() if "lora_B" in name])

    assert float(a.std()) == pytest.approx(1 / 8, rel=0.15)
    assert float(b.abs().max()) == 0
    assert all(w.dtype == torch.float32 and w.requires_grad for w in weights.values())


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (2, 6.0)])
def test_the_adapter_equals_merged_weights(rank, alpha):
    model = network()
    with filled(inject(model, AdapterSettings(rank=rank, alpha=alpha))) as adapter:
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
    with filled(inject(model, AdapterSettings(rank=rank, alpha=2.0, kind=kind))) as adapter:
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
    with filled(inject(model, AdapterSettings(rank=1, alpha=3.0, kind=kind))) as adapter:
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

    with torch.random.fork_rng(), filled(inject(model, AdapterSettings(kind=kind, dropout=0.5))):
        first, second = outputs()

        assert not torch.equal(first, second)
        assert all(torch.equal(a, b) for a, b in zip((first, second), outputs(), strict=True))
        assert bool(torch.isfinite(torch.stack([first, second])).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_is_left_alone_and_the_seed_decides(kind):
    state, config = torch.get_rng_state(), AdapterSettings(kind=kind)
    with (
        inject(network(), config, seed=3) as first,
        inject(network(), config, seed=3) as second,
        inject(network(), config, seed=4) as third,
    ):
        a, b, c = (adapter.state_dict() for adapter in (first, second, third))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_bases_keep_a_float32_adapter(kind, dtype):
    model = network().to(dtype)
    x, level, context = (tensor.to(dtype) for tensor in inputs())
    with filled(inject(model, AdapterSettings(kind=kind))) as adapter:
        out = model(x, level, context)
        out.float().square().sum().backward()

        assert out.dtype == dtype
        assert all(bool(torch.isfinite(p.grad).all()) for p in adapter.parameters())
        assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in adapter.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_larger_than_a_layer_is_refused(kind):
    with pytest.raises(AdapterError, match=r"rank of at most 8 for the layer 'attn1.to_q', got 9"):
        inject(network(), AdapterSettings(rank=9, kind=kind))
