"""Weights that a loader made in inference mode let gradients through, and come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import CHANNELS, WIDTH, Network, filled, inject, inputs, snapshot

from domaingallery_core.trainables.adapter_settings import AdapterSettings
from domaingallery_core.trainables.adapters import ordinary_weights
from domaingallery_core.trainables.kinds import KINDS


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
        assert type(layer.weight) is nn.Parameter and type(model.shift) is torch.Tensor
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ordinary_weights_takes_numbers_and_transposed_weights(dtype):
    with torch.inference_mode():
        layer = nn.Linear(3, 4).to(dtype)
        layer.register_buffer("absent", None)
        layer.register_buffer("scale", torch.tensor(2.0, dtype=dtype))
        layer.weight = nn.Parameter(layer.weight.T)
    before = layer.weight.clone()

    with ordinary_weights(layer):
        assert not layer.weight.is_inference() and torch.equal(layer.weight.detach(), before)
        assert not layer.weight.requires_grad and not layer.bias.requires_grad
        assert not layer.scale.is_inference() and float(layer.scale) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_in_inference_mode_can_be_trained_on(kind):
    with torch.inference_mode(), inject(inference_network(), AdapterSettings(kind=kind)) as adapter:
        lora = adapter.exported(adapter.state_dict())

    assert not any(tensor.is_inference() for tensor in lora.values())


def test_tied_weights_stay_tied():
    with torch.inference_mode():
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        second.weight = first.weight
    pair = nn.ModuleList([first, second])

    with ordinary_weights(pair):
        assert pair[0].weight is pair[1].weight and not pair[0].weight.is_inference()
    assert pair[0].weight is pair[1].weight and pair[0].weight.is_inference()
