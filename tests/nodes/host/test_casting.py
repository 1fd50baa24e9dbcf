"""A base in another precision than it computes in is kept once, and gives the gradients that it gave."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.nodes.tiny import (
    host_module,
    same,
    tiny_latents,
    tiny_model,
    tiny_part,
    tiny_prompts,
    weights_of,
)
from tests.nodes.training import train

HALF = [torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@pytest.fixture
def casts(comfy, monkeypatch):
    """Return the weights that the host casts from now on, as far as they are still there."""
    ops, found = host_module("comfy.ops"), []
    cast = ops.cast_bias_weight

    def noted(*args, **kwargs):
        result = cast(*args, **kwargs)
        found.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr(ops, "cast_bias_weight", noted)
    return found


def model_in(dtype):
    """Return a MODEL with weights in a dtype that computes in float32."""
    model = tiny_model()
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
            for name, weight in list(module.named_parameters(recurse=False)):
                with torch.inference_mode():
                    setattr(module, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
    model.model.manual_cast_dtype = torch.float32
    return model


def gradient(nodes, model):
    """Yield a loss of what the network makes of an input, and then its gradient."""
    host, memory = nodes("nodes.host.model"), nodes("nodes.host.network.memory")
    with host.training(model), memory.precision(model, "float32"):
        denoiser = host.HostDenoiser(model)
        x = tiny_latents(2).clone().requires_grad_()
        [condition] = denoiser.conditions([tiny_prompts(nodes).first.target], x.detach())
        loss = denoiser(x, torch.tensor([0.5, 2.0]), condition).square().sum()
        yield loss
        yield torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("dtype", HALF)
def test_no_copy_of_a_weight_is_kept_for_the_backward_pass(nodes, casts, dtype):
    run = gradient(nodes, model_in(dtype))

    next(run)
    gc.collect()

    assert len(casts) > 50 and not any(weight() is not None for weight in casts)
    assert bool(torch.isfinite(next(run)).all())


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_are_those_of_the_copies(nodes, dtype, monkeypatch):
    model = model_in(dtype)
    found = [*gradient(nodes, model)]

    with monkeypatch.context() as patch:
        patch.setattr(nodes("nodes.host.network.memory"), "cast_anew", lambda *given: torch.enable_grad())
        expected = [*gradient(nodes, model)]

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_base_that_computes_as_it_is_stored_is_left_alone(nodes, casts):
    ops = host_module("comfy.ops")
    before = ops.cast_bias_weight

    with nodes("nodes.host.network.casting").cast_anew(tiny_model().model.diffusion_model, torch.float32):
        assert ops.cast_bias_weight is before


def test_the_host_casts_as_before_after_an_error(nodes, comfy):
    ops = host_module("comfy.ops")
    before = ops.cast_bias_weight

    with (
        pytest.raises(ZeroDivisionError),
        nodes("nodes.host.network.casting").cast_anew(
            model_in(torch.float16).model.diffusion_model, torch.float32
        ),
    ):
        assert ops.cast_bias_weight is not before
        raise ZeroDivisionError

    assert ops.cast_bias_weight is before


@pytest.mark.parametrize("dtype", HALF)
def test_a_base_in_less_precision_learns_in_twenty_steps(nodes, dtype):
    """The loss on the same noise falls, and the MODEL is as it was."""
    model = model_in(dtype)
    before = weights_of(model)
    sockets, examples = nodes("nodes.sockets"), nodes("domaingallery_core.data.examples").Examples
    dataset = sockets.LatentDataset((tiny_part(nodes, validation=examples(tiny_latents(3, 1))),))
    options = sockets.TrainingOptions(weights={"similarity": 0.0})
    run = sockets.RunOptions(validate_every=10)

    trained = train(
        nodes, model, steps=20, learning_rate=5e-3, dataset=dataset, options=options, run_options=run
    )

    losses = trained.ui["validation"][0]
    assert len(losses) == 3 and losses[20] < losses[10] < losses[0]
    assert same(before, weights_of(model))
