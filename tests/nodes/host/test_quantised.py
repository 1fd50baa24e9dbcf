"""Bases in the quantised formats of the host, by its loader: adapters learn, and they stay as they are."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.thin_models import MODELS, write_model
from tests.nodes.tiny import host_module, tiny_prompts
from tests.nodes.training import train

FORMATS = ["float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "nvfp4", "mxfp8"]
FLUX = MODELS["flux"]


@pytest.fixture(scope="module")
def weights(comfy, tmp_path_factory):
    """Return the file of a thin Flux."""
    return load_file(write_model(tmp_path_factory.mktemp("flux"), "flux"))


@pytest.fixture(params=FORMATS)
def quantised(request, comfy, weights):
    """Return a MODEL whose blocks are quantised, by the stock loader."""
    ops = host_module("comfy.quant_ops")
    layout, found = ops.QUANT_ALGOS[request.param]["comfy_tensor_layout"], {}
    scale = {} if request.param == "mxfp8" else {"scale": "recalculate"}
    for name, tensor in weights.items():
        module = name.removesuffix(".weight")
        if "_blocks." not in name or tensor.ndim != 2:
            found[name] = tensor.clone()
            continue
        found |= ops.QuantizedTensor.from_float(tensor, layout, **scale).state_dict(name)
        said = json.dumps({"format": request.param}).encode()
        found[f"{module}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    with torch.inference_mode():
        return host_module("comfy.sd").load_diffusion_model_state_dict(found)


def bytes_of(model):
    """Return copies of all weights as they are stored, by names."""
    return {
        name: tensor.clone().view(-1).view(torch.uint8) for name, tensor in model.model.state_dict().items()
    }


def prompts(nodes):
    """Return prompts of the widths that a thin Flux reads."""
    made = {}
    for seed, name in enumerate(("target", "source", "bare", "empty")):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, 8, FLUX.context, generator=generator)
        made[name] = [[context, {"pooled_output": torch.randn(1, FLUX.pooled, generator=generator)}]]
    return tiny_prompts(nodes, **made)


def dataset(nodes):
    """Return noise of the size of latents, with some that is looked at."""
    sockets, examples = nodes("nodes.sockets"), nodes("domaingallery_core.data.examples").Examples
    noise = torch.randn(11, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    part = sockets.LatentPart(
        source=examples(noise[:5]), target=examples(noise[5:8]), validation=examples(noise[8:])
    )
    return sockets.LatentDataset((part,))


def test_a_quantised_base_learns_in_twenty_steps_and_stays_as_it_is(nodes, quantised):
    """The loss on the same noise falls."""
    before, modules = bytes_of(quantised), [(n, id(m)) for n, m in quantised.model.named_modules()]
    sockets = nodes("nodes.sockets")
    options = sockets.TrainingOptions(batch_size=2, weights={"similarity": 0.0, "disentanglement": 0.0})

    trained = train(
        nodes, quantised, steps=20, learning_rate=5e-3, dataset=dataset(nodes), prompts=prompts(nodes),
        options=options, run_options=sockets.RunOptions(validate_every=10, preview_every=0),
    )  # fmt: skip

    losses = trained.ui["validation"][0]
    assert losses[20] < losses[10] < losses[0]
    assert len(trained[0]) == 3 * 12 and all(bool(t.any()) for t in trained[0].values())
    after = bytes_of(quantised)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert modules == [(n, id(m)) for n, m in quantised.model.named_modules()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_of_it_for_a_backward_pass_is_what_is_stored(nodes, quantised, monkeypatch, dtype):
    """No second copy of the weights, nor what a call makes of them; gradients are those of the weight."""
    host, memory, ops = (
        nodes("nodes.host.model"),
        nodes("nodes.host.network.memory"),
        host_module("comfy.ops"),
    )
    layer = quantised.model.diffusion_model.double_blocks[0].img_attn.qkv
    stored, cast, casts = layer.weight._qdata.data_ptr(), ops.cast_bias_weight, []

    def noted(*args, **kwargs):
        found = cast(*args, **kwargs)
        casts.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(ops, "cast_bias_weight", noted)
    with torch.inference_mode(), host.training(quantised), memory.precision(quantised, dtype):
        assert layer.weight._qdata.data_ptr() == stored and not layer.weight.is_inference()
        generator, dtype = torch.Generator().manual_seed(0), getattr(torch, dtype)
        x = torch.randn(2, 4, 256, generator=generator).to(dtype).requires_grad_()
        loss = (layer(x) ** 2).sum()
        gc.collect()
        kept = [weight() for weight in casts if weight() is not None]
        assert casts and all(weight._qdata.data_ptr() == stored for weight in kept)
        [found] = torch.autograd.grad(loss, x)
        weight, bias = layer.weight.dequantize().to(dtype), layer.bias.to(dtype)
        [expected] = torch.autograd.grad((torch.nn.functional.linear(x, weight, bias) ** 2).sum(), x)
    difference = float((found - expected).float().norm() / expected.float().norm())
    assert difference < 2e-2  # of int8, which the host multiplies by x in eight bits as well; of bfloat16
    assert layer.weight._qdata.data_ptr() == stored


@pytest.mark.parametrize("quantised", ["float8_e4m3fn"], indirect=True)
@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_every_kind_of_adapter_learns_on_it(nodes, quantised, kind):
    options = nodes("nodes.sockets").TrainingOptions(
        batch_size=2, kind=kind, weights={"similarity": 0.0, "disentanglement": 0.0}
    )

    lora = train(nodes, quantised, dataset=dataset(nodes), prompts=prompts(nodes), options=options)[0]

    assert all(bool(torch.isfinite(tensor).all()) for tensor in lora.values())
    with torch.inference_mode():
        loaded, _ = host_module("comfy.sd").load_lora_for_models(quantised, None, lora, 1.0, 0)
    assert len(loaded.patches) == 12


@pytest.mark.parametrize("quantised", ["float8_e4m3fn"], indirect=True)
def test_all_weights_of_it_are_not_trained(nodes, errors, quantised):
    from tests.nodes.baselines import baseline

    with pytest.raises(errors.InputError, match=r"to train all its weights, got .* as a QuantizedTensor"):
        baseline(nodes, quantised, "DreamBooth", dataset=dataset(nodes), prompts=prompts(nodes))
