"""LoRA, DoRA, LoHa and LoKr: what each begins with, what it computes, and in what precision."""

from __future__ import annotations

import json

import pytest
import torch
from toys import LAYERS, WIDTH, filled, inject, inputs, network

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


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_dropout_leaves_out_whole_outputs_and_scales_the_others_up(kind):
    """What a layer adds is the same on average."""
    model = network()

    def added(layer):
        given = torch.eye(WIDTH)
        return (layer(given) - layer.get_base_layer()(given)).detach()

    with filled(inject(model, AdapterSettings(kind=kind))):
        whole = added(model.attn1.to_q)
    with torch.random.fork_rng(), filled(inject(model, AdapterSettings(kind=kind, dropout=0.5))):
        torch.manual_seed(3)
        found = added(model.attn1.to_q)

    kept = found.abs().amax(0) > 1e-5
    assert 0 < int(kept.sum()) < WIDTH
    torch.testing.assert_close(found, whole * kept * (WIDTH / kept.sum()), rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    ("kind", "zero"),
    [("lora", "lora_B.weight"), ("dora", "lora_B.weight"), ("loha", "hada_w2_b"), ("lokr", "lokr_w1")],
)
def test_one_part_begins_with_zeros_and_the_others_as_their_papers_say(kind, zero, rank):
    """Those of LoHa and LoKr are drawn as torch draws a Linear, evenly up to 1 / sqrt(inputs)."""
    model = network()
    with inject(model, AdapterSettings(kind=kind, rank=rank)) as adapter:
        weights = {name: weight.detach() for name, weight in adapter.named_parameters().items()}

    drawn = [weight for name, weight in weights.items() if not name.endswith((zero, ".magnitude"))]
    assert all(not weight.any() for name, weight in weights.items() if name.endswith(zero))
    assert all(weight.all() for weight in drawn)
    if kind in ("loha", "lokr"):
        sizes = torch.cat([(weight.abs() * weight.shape[1] ** 0.5).flatten() for weight in drawn])
        assert 0.95 < float(sizes.max()) <= 1.0 and float(sizes.mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 2.0), (3, 3.0)])
def test_a_lokr_that_is_not_factored_has_no_scale_in_a_file(rank, alpha):
    """A loader divides its alpha by the rank, and there is none that would be meant."""
    with inject(network(), AdapterSettings(kind="lokr", rank=rank, alpha=2.0)) as adapter:
        state = adapter.state_dict()

    assert ("attn1.to_q.lokr_w2" in state) is (rank == 3)
    assert {float(tensor) for name, tensor in state.items() if name.endswith(".alpha")} == {alpha}


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("lora", "networks.lora"),
        ("dora", "networks.lora"),
        ("loha", "lycoris.kohya"),
        ("lokr", "lycoris.kohya"),
    ],
)
def test_a_file_says_its_kind_in_kohyas_words(kind, network):
    said = KINDS[kind].metadata()

    assert said.keys() == {"ss_network_module", "ss_network_args"} and said["ss_network_module"] == network
    assert json.loads(said["ss_network_args"]) == {"algo": kind}


A, B, W1, W2B = "m.lora_A.weight", "m.lora_B.weight", "m.lokr_w1", "m.lokr_w2_b"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({A: (3, 8), B: (8, 3)}, ("lora", 3, 3.0)),
        ({A: (3, 8), B: (8, 3), "m.alpha": 0.5}, ("lora", 3, 0.5)),
        ({A: (3, 8), B: (8, 3), "m.alpha": [2.0]}, ("lora", 3, 2.0)),
        ({A: ()}, ("lora", 1, 1.0)),
        ({A: (3, 8), "m.dora_scale": (8, 1)}, ("dora", 3, 3.0)),
        ({A: (3, 8), "m.magnitude": (8,), "m.alpha": 6.0}, ("dora", 3, 6.0)),
        ({"m.hada_w1_b": (3, 8), "m.alpha": 2.0}, ("loha", 3, 2.0)),
        ({W1: (2, 2), W2B: (3, 4), "m.alpha": 2.0}, ("lokr", 3, 2.0)),
        ({W1: (2, 2), "m.lokr_w2": (4, 4), "m.alpha": 3.0}, ("lokr", 3, 3.0)),
        ({W1: (2, 2), "m.lokr_w2": (4, 4)}, ("lokr", 1, 1.0)),
    ],
    ids=str,
)
def test_kind_rank_and_alpha_are_told_from_the_tensors(tensors, expected):
    given = {
        name: torch.ones(value) if isinstance(value, tuple) else torch.tensor(value)
        for name, value in tensors.items()
    }

    assert describe(given) == expected


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1e9, float("nan"), float("inf"), [1.0, 2.0], []], ids=str)
def test_an_alpha_that_is_not_one_number_above_zero_is_refused(alpha):
    with pytest.raises(AdapterError, match="Expected a LoRA whose alpha is a number above 0, got"):
        describe({A: torch.ones(3, 8), "m.alpha": torch.tensor(alpha)})


def test_tensors_of_no_kind_are_refused_by_name():
    for tensors, name in (({"m.weight": torch.ones(2)}, "'m.weight'"), ({}, "''")):
        with pytest.raises(
            AdapterError, match=f"Expected a .*LoRA.*, got one with names such as {name}. Connect another"
        ):
            describe(tensors)


@pytest.mark.parametrize("other", ["scale", "convolution"])
def test_parts_of_another_shape_are_left_for_load_to_name(other):
    with inject(network(), AdapterSettings(kind="dora")) as adapter:
        lora = adapter.exported(adapter.state_dict())
        if other == "scale":
            lora["attn1.to_q.dora_scale"] = torch.ones(WIDTH + 1, 1)
        else:
            for part in ("lora_A", "lora_B"):
                lora[f"attn1.to_q.{part}.weight"] = lora[f"attn1.to_q.{part}.weight"][..., None, None]

        with pytest.raises(AdapterError, match=r"attn1\.to_q\.dora_scale is not part of the model"):
            adapter.load(adapter.imported(lora))
