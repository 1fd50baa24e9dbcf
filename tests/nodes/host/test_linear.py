"""The host's linear layers with a LoRA compute in one, with weights that are cast for a call too."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.nodes.host.test_casting import HALF, model_in
from tests.nodes.tiny import host_module, tiny_latents, tiny_model, tiny_prompts

#: What the core's adapters look a layer up in.
FUSED = "domaingallery_core.trainables.fused"


def gradients(nodes, model, *, checkpointing="off", targets="attention"):
    """Yield a loss of what the network with a LoRA makes of an input, and then its gradients."""
    host, memory = nodes("nodes.host.model"), nodes("nodes.host.network.memory")
    adapters = nodes("domaingallery_core.trainables.adapters")
    settings = nodes("domaingallery_core.trainables.adapter_settings").AdapterSettings(targets=targets)
    seed, network = torch.Generator().manual_seed(0), model.model.diffusion_model
    with (
        host.training(model),
        memory.precision(model, "float32"),
        memory.gradient_checkpointing(model, checkpointing),
        adapters.Adapter.inject(network, settings, seed) as adapter,
    ):
        for name, weight in adapter.named_parameters().items():
            if "lora_B" in name:
                weight.data.normal_(std=0.1, generator=seed)
        denoiser = host.HostDenoiser(model)
        x = tiny_latents(2).clone().requires_grad_()
        [condition] = denoiser.conditions([tiny_prompts(nodes).first.target], x.detach())
        loss = denoiser(x, torch.tensor([0.5, 2.0]), condition).square().sum()
        yield loss.detach(), loss
        yield torch.autograd.grad(loss, [x, *adapter.parameters()])


def found(nodes, model, **settings):
    """Return the loss and its gradients."""
    run = gradients(nodes, model, **settings)
    return [next(run)[0], *next(run)]


@pytest.fixture
def by_peft(nodes, monkeypatch):
    """Return a function that leaves all layers to peft."""
    computes = nodes(FUSED).COMPUTES

    def leave():
        for kind in list(computes):
            monkeypatch.delitem(computes, kind)

    return leave


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_gradients_are_pefts_to_rounding(nodes, by_peft, dtype, checkpointing):
    model = tiny_model() if dtype == torch.float32 else model_in(dtype)
    mine = found(nodes, model, checkpointing=checkpointing)
    by_peft()

    theirs = found(nodes, model, checkpointing=checkpointing)

    for one, other in zip(mine, theirs, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


@pytest.mark.parametrize("targets", ["attention", "linear"])
def test_every_layer_of_the_host_is_computed_in_one(nodes, monkeypatch, targets):
    seen, model = [], tiny_model()
    for kind, compute in nodes(FUSED).COMPUTES.items():

        def noted(layer, x, product, compute=compute):
            seen.append(layer)
            return compute(layer, x, product)

        monkeypatch.setitem(nodes(FUSED).COMPUTES, kind, noted)
    adapters = nodes("domaingallery_core.trainables.adapters")

    found(nodes, model, targets=targets)

    assert set(seen) == set(adapters.target_modules(model.model.diffusion_model, targets).values())


@pytest.mark.parametrize("dtype", HALF)
def test_no_cast_copy_of_an_adapted_layer_is_kept_for_the_backward_pass(nodes, monkeypatch, dtype):
    ops, copies = host_module("comfy.ops"), []
    cast = ops.cast_bias_weight

    def noted(*args, **kwargs):
        result = cast(*args, **kwargs)
        copies.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr(ops, "cast_bias_weight", noted)
    run = gradients(nodes, model_in(dtype), targets="linear")

    next(run)
    gc.collect()

    assert len(copies) > 50 and not any(copy() is not None for copy in copies)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in next(run))


def test_weights_with_a_function_of_the_hosts_are_used_as_it_makes_them(nodes, by_peft):
    """So patches are applied that the host did not write into the weights."""
    model = tiny_model()
    layers = model.model.diffusion_model.named_modules()
    layer = next(module for name, module in layers if name.endswith("attn2.to_q"))
    plain = found(nodes, model)[0]
    layer.weight_function = [lambda weight: weight * 3]

    mine = found(nodes, model)
    by_peft()

    assert not torch.allclose(mine[0], plain)
    for one, other in zip(mine, found(nodes, model), strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm())


def test_a_layer_that_multiplies_in_eight_bits_is_left_to_peft(nodes):
    ops = host_module("comfy.ops")

    assert ops.fp8_ops.Linear not in nodes(FUSED).COMPUTES
    assert {ops.disable_weight_init.Linear, ops.manual_cast.Linear} <= set(nodes(FUSED).COMPUTES)
