"""Adapters learn on layers that are linear in all but name, as those of quantised models are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import LAYERS, filled, inject, inputs, network, snapshot

from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import ordinary_weights, target_modules
from domaingallery_core.trainables.kinds import KINDS
from domaingallery_core.trainables.linear import as_linear, is_linear


class InName(nn.Module):
    """A linear layer that is none of torch's."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def in_name():
    """Return a network without a Linear of torch's."""
    model = network()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            model.get_submodule(parent)._modules[leaf] = InName(layer)
    return model


def test_they_are_told_by_what_they_have():
    layer = InName(nn.Linear(2, 3))

    assert is_linear(layer) and is_linear(nn.Linear(2, 3))
    assert not is_linear(nn.Conv2d(2, 3, 1)) and not is_linear(nn.Bilinear(2, 2, 3))
    assert not is_linear(nn.Embedding(2, 3)) and not is_linear(nn.Identity())
    layer.weight = nn.Parameter(torch.zeros(4, 3, 2))  # several at once
    assert not is_linear(layer)
    assert len(target_modules(in_name(), "attention")) == LAYERS


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_does_on_them_what_it_does_on_a_linear(kind):
    settings, model, plain = AdapterSettings(kind=kind, rank=2), in_name(), network()
    before, base = snapshot(model), plain(*inputs())

    with filled(inject(model, settings)) as adapter, filled(inject(plain, settings)) as other:
        found, expected = model(*inputs()), plain(*inputs())
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(found, expected)  # a Linear and its LoRA are computed in one
        assert not torch.equal(found, base)
        for name, weight in adapter.named_parameters().items():
            torch.testing.assert_close(weight.grad, other.named_parameters()[name].grad, rtol=1e-4, atol=1e-4)
        exported = adapter.exported(adapter.state_dict())
        assert all(torch.equal(t, other.exported(other.state_dict())[n]) for n, t in exported.items())
        with adapter.off():
            assert torch.equal(model(*inputs()), base)

    assert snapshot(model) == before


def test_weights_that_are_swapped_beneath_an_adapter_are_swapped_for_both():
    with torch.inference_mode():
        layer = InName(nn.Linear(2, 3))
    stand_in = as_linear(layer)

    with ordinary_weights(nn.ModuleList([stand_in])):
        assert stand_in.weight is layer.weight and not layer.weight.is_inference()
        stand_in(torch.ones(1, 2, requires_grad=True)).sum().backward()

    assert stand_in.weight is layer.weight and layer.weight.is_inference()


def test_a_linear_is_left_as_it_is():
    layer = nn.Linear(2, 3)

    assert as_linear(layer) is layer
