"""Layers with a plain LoRA compute as peft's do, keep less, and leave to peft what is not plain."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint
from toys import filled, inject, inputs, network, random

from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import Adapter
from domaingallery_core.trainables.kinds.base import NAME

IN, OUT = 12, 20
#: With few rows B A x is added to what the layer gives, with many B A to its weight.
FEW, MANY = (3,), (2, 5, 40)
DOUBLE = torch.float64


def layer_with_lora(*, bias=True, dtype=torch.float32, adapter=torch.float32, alpha=6.0, **settings):
    """Return an adapter on one Linear, and the layer of peft's around that."""
    base = nn.Linear(IN, OUT, bias=bias, dtype=dtype).requires_grad_(False)
    for i, weight in enumerate(base.parameters()):
        weight.copy_(random(*weight.shape, seed=i))
    model = nn.Sequential(base)
    config = AdapterSettings(targets="linear", alpha=alpha, **settings)
    found = Adapter.inject(model, config, torch.Generator().manual_seed(0), dtype=adapter)
    return filled(found), model[0]


def in_pefts_way(layer, x):
    return type(layer).forward(layer, x)


def gradients(compute, x, adapter):
    """Return what a layer makes of x, and the gradients of a loss of it for x, A and B."""
    x = x.clone().requires_grad_()
    y = compute(x)
    loss = (y.double() * random(*y.shape, seed=9).double()).sum()
    return [y.detach(), *torch.autograd.grad(loss, [x, *adapter.parameters()])]


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("alpha", [4.0, 6.0])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_pefts_to_rounding(shape, alpha, bias):
    adapter, layer = layer_with_lora(bias=bias, dtype=DOUBLE, adapter=DOUBLE, alpha=alpha)
    x = random(*shape, IN, seed=3).double()

    found = gradients(layer, x, adapter)

    expected = gradients(lambda x: in_pefts_way(layer, x), x, adapter)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layer(x), found[0])


@pytest.mark.parametrize("shape", [FEW, MANY])
def test_gradients_are_those_of_the_function(shape):
    adapter, layer = layer_with_lora(dtype=DOUBLE, adapter=DOUBLE)
    x = random(*shape, IN, seed=3).double().requires_grad_()
    a, b = adapter.parameters()

    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, a, b), fast_mode=True)


@pytest.mark.parametrize(
    "strided",
    [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[:1].expand(3, -1, -1)],
    ids=["transposed", "every second", "expanded"],
)
def test_inputs_and_gradients_may_be_views(strided):
    adapter, layer = layer_with_lora(dtype=DOUBLE, adapter=DOUBLE)
    x = random(4, 6, IN, seed=3).double()

    found = gradients(lambda x: layer(strided(x)).transpose(0, 1), x, adapter)

    expected = gradients(lambda x: in_pefts_way(layer, strided(x)).transpose(0, 1), x, adapter)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_adapter_on_a_base_in_half_precision_is_as_near_the_truth_as_pefts(shape, dtype):
    adapter, layer = layer_with_lora(dtype=dtype)
    exact, exact_layer = layer_with_lora(dtype=DOUBLE, adapter=DOUBLE)
    for name in ("weight", "bias"):  # the base as it is after rounding
        getattr(exact_layer.base_layer, name).data = getattr(layer.base_layer, name).double()
    x = random(*shape, IN, seed=3).to(dtype)
    truth = gradients(exact_layer, x.double(), exact)

    found = gradients(layer, x, adapter)

    theirs = gradients(lambda x: in_pefts_way(layer, x), x, adapter)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    allowed = 2 * torch.finfo(dtype).eps
    for mine, other, true in zip(found, theirs, truth, strict=True):
        error, peft = ((t.double() - true).norm() / true.norm() for t in (mine, other))
        assert error < max(2 * peft, allowed)


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_for_the_backward_pass_is_the_input(shape, dtype):
    adapter, layer = layer_with_lora(dtype=dtype)
    x = random(*shape, IN, seed=3).to(dtype)
    there = {t.data_ptr() for t in (x, layer.base_layer.weight, *adapter.parameters())}
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)

    assert {t.data_ptr() for t in kept} == there


def test_an_input_without_gradient_and_a_checkpoint_give_the_same_gradients_of_the_adapter():
    adapter, layer = layer_with_lora()
    x = random(*MANY, IN, seed=3)
    expected = gradients(layer, x, adapter)[2:]

    loss = (layer(x) * random(*MANY, OUT, seed=9)).sum()
    again = gradients(lambda x: checkpoint(layer, x, use_reentrant=False), x, adapter)[2:]

    plain = torch.autograd.grad(loss, adapter.parameters())
    for one, two, three in zip(expected, plain, again, strict=True):
        torch.testing.assert_close(one, two)
        assert torch.equal(one, three)


def is_pefts(layer, *args):
    """Tell whether a layer leaves its work to peft, which goes through the layers lora_A and lora_B."""
    seen = []
    hook = layer.lora_A[NAME].register_forward_hook(lambda *_: seen.append(True))
    layer(random(*FEW, IN, seed=3), *args)
    hook.remove()
    return bool(seen)


def test_a_plain_layer_is_computed_here():
    _, layer = layer_with_lora()

    assert not is_pefts(layer)


@pytest.mark.parametrize("settings", [{"kind": "dora"}, {"dropout": 0.5}])
def test_what_is_not_plain_is_left_to_peft(settings):
    _, layer = layer_with_lora(**settings)

    assert is_pefts(layer)


def test_a_second_adapter_in_the_layer_is_heard():
    _, layer = layer_with_lora()
    x = random(*FEW, IN, seed=3)
    alone = layer(x)
    layer.update_layer("other", 4, lora_alpha=4, config=LoraConfig(r=4))
    layer.lora_B["other"].weight.data.fill_(0.1)

    layer.set_adapter([NAME, "other"])

    assert is_pefts(layer)
    added = layer.lora_B["other"](layer.lora_A["other"](x))
    torch.testing.assert_close(layer(x), alone + added)


def test_hooks_on_the_base_layer_and_a_forward_of_its_own_are_heeded():
    _, layer = layer_with_lora()
    base, x, seen = layer.base_layer, random(*FEW, IN, seed=3), []
    plain = layer(x)

    hook = base.register_forward_hook(lambda *_: seen.append(True))
    assert is_pefts(layer) and seen
    hook.remove()
    assert not is_pefts(layer)

    base.forward = lambda x: torch.zeros(*x.shape[:-1], OUT)
    torch.testing.assert_close(layer(x), plain - nn.Linear.forward(base, x))


def test_layers_of_a_class_that_is_not_known_are_left_to_peft():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(IN, OUT))
    x = random(*FEW, IN, seed=3)
    expected = model(x)

    with inject(model, AdapterSettings(targets="linear")):
        assert is_pefts(model[0]) and torch.equal(model(x), expected)


def test_autocast_is_heeded():
    _, layer = layer_with_lora()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_pefts(layer) and layer(random(*FEW, IN, seed=3)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_switching_off_touches_no_layer(kind):
    model = network()
    with filled(inject(model, AdapterSettings(kind=kind))) as adapter:
        on, layer = model(*inputs()), model.attn1.to_q
        with adapter.off():
            assert not layer.disable_adapters and all(p.requires_grad for p in adapter.parameters())
            off = model(*inputs())

        assert not off.requires_grad and not torch.equal(off, on)


def test_two_adapters_of_two_models_are_switched_apart():
    first, second = network(0), network(1)
    with filled(inject(first)) as one, filled(inject(second)):
        on = second(*inputs())
        with one.off():
            assert not first(*inputs()).requires_grad and torch.equal(second(*inputs()), on)


def test_a_removed_layer_is_freed_without_the_garbage_collector():
    model = network()
    adapter = inject(model)
    layer = weakref.ref(model.attn1.to_q)
    gc.disable()
    try:
        adapter.remove()

        assert layer() is None
    finally:
        gc.enable()
