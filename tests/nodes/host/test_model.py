"""The core's view of a host MODEL is the host's own view of it, and looking changes nothing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.nodes.tiny import (
    conditioning,
    host_module,
    same,
    tiny_latents,
    tiny_model,
    tiny_prompts,
    weights_of,
)
from tests.nodes.training import erase


def predict(nodes, model, prompts, x, sigma):
    """Return x0 for the target and the source prompt, as training sees them."""
    host = nodes("nodes.host.model")
    with host.training(model):
        denoiser = host.HostDenoiser(model)
        conditions = denoiser.conditions([prompts.first.target, prompts.first.source], x.clone())
        with torch.no_grad():
            return [denoiser(x.clone(), sigma.clone(), condition) for condition in conditions]


def predict_as_host(model, conditionings, x, sigma):
    """Return x0 for each conditioning, as the host's samplers compute it."""
    samplers = host_module("comfy.samplers")
    with torch.inference_mode():
        host_module("comfy.model_management").load_models_gpu([model])
        guider = samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": conditionings[0], "negative": conditionings[1]})
        conds = {name: [dict(c) for c in cond] for name, cond in guider.original_conds.items()}
        conds = samplers.process_conds(model.model, x, conds, x.device, seed=0)
        model.pre_run()
        out = samplers.calc_cond_batch(
            model.model, [conds["positive"], conds["negative"]], x, sigma, {"transformer_options": {}}
        )
        model.cleanup()
    return out


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.parametrize("pooled", [0, 5])
def test_x0_is_that_of_the_host(comfy, nodes, kind, pooled):
    """Every family, and a pooled embedding with size conditioning, come out as in the host's own batch."""
    model = tiny_model(kind, pooled=pooled)
    prompts = tiny_prompts(nodes, pooled=pooled)
    x, sigma = tiny_latents(2), torch.tensor([0.4, 0.7])

    expected = predict_as_host(model, [prompts.first.target, prompts.first.source], x, sigma)
    actual = predict(nodes, model, prompts, x, sigma)

    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual[0], actual[1])


def test_size_conditioning_depends_on_the_size_of_the_latents(comfy, nodes):
    host = nodes("nodes.host.model")
    model = tiny_model(pooled=5)
    with host.training(model):
        denoiser = host.HostDenoiser(model)
        small, large = (
            denoiser.conditions([conditioning(0, pooled=5)], torch.zeros(1, 4, size, size))[0].tensors["y"]
            for size in (8, 16)
        )

    assert small[0, -2:].tolist() == [1, 1]
    assert large[0, -2:].tolist() == [2, 2]


def test_a_condition_is_one_row_even_where_it_is_made_of_the_latents(comfy, nodes, monkeypatch):
    """As inpainting models read; it serves batches of any size."""
    model, conds = tiny_model(), host_module("comfy.conds")
    monkeypatch.setattr(
        model.model, "extra_conds", lambda **given: {"c_concat": conds.CONDNoiseShape(given["noise"])}
    )

    [condition] = nodes("nodes.host.model").HostDenoiser(model).conditions([conditioning(0)], tiny_latents(3))

    assert condition.shapes() == {"c_concat": (1, 4, 8, 8)}


def test_prompts_of_different_length_are_attended_to_as_before(comfy, nodes):
    model = tiny_model()
    long, short = conditioning(0, tokens=9), conditioning(1, tokens=6)
    prompts = tiny_prompts(nodes, target=long, source=short, bare=short, empty=short)
    x, sigma = tiny_latents(2), torch.tensor([0.4, 0.7])

    expected = predict_as_host(model, [long, short], x, sigma)

    for mine, theirs in zip(predict(nodes, model, prompts, x, sigma), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_wrapper_of_the_model_is_called_as_the_samplers_call_it(comfy, nodes):
    """It changes what the MODEL computes, so it changes what is trained on."""
    model, seen = tiny_model(), []

    def wrapper(apply, given):
        seen.append((given["cond_or_uncond"], given["input"].shape[0], sorted(given["c"])))
        return 0.5 * apply(given["input"], given["timestep"], **given["c"])

    prompts, x, sigma = tiny_prompts(nodes), tiny_latents(2), torch.tensor([0.4, 0.7])
    plain = predict(nodes, model, prompts, x, sigma)
    model.set_model_unet_function_wrapper(wrapper)
    wrapped = predict(nodes, model, prompts, x, sigma)

    assert seen == [([0], 2, ["c_crossattn", "transformer_options"])] * 2
    assert all(torch.equal(0.5 * one, other) for one, other in zip(plain, wrapped, strict=True))


def test_a_wrapper_of_the_network_runs_while_it_is_trained(comfy, nodes):
    """Of the kind that MODEL patches register by a key; it is told what the samplers tell it."""
    model, seen = tiny_model(), []

    def wrapper(apply, x, sigma, *args, **given):
        options = next(value for value in args if isinstance(value, dict))
        seen.append((options["cond_or_uncond"], options["sigmas"].tolist()))
        return 0.5 * apply(x, sigma, *args, **given)

    prompts, x, sigma = tiny_prompts(nodes), tiny_latents(2), torch.tensor([0.5, 0.75])
    plain = predict(nodes, model, prompts, x, sigma)
    kinds = host_module("comfy.patcher_extension").WrappersMP
    model.add_wrapper_with_key(kinds.APPLY_MODEL, "halved", wrapper)
    wrapped = predict(nodes, model, prompts, x, sigma)

    assert seen == [([0], [0.5, 0.75])] * 2
    assert all(torch.equal(0.5 * one, other) for one, other in zip(plain, wrapped, strict=True))


def test_a_patch_that_stops_the_gradient_is_named(comfy, nodes, errors):
    model = tiny_model()
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"]).detach()
    )

    with pytest.raises(errors.TrainingError, match="losses with a gradient, got some without"):
        erase(nodes, model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "prompts of a single conditioning, got 0 combined ones"),
        (conditioning(0) + conditioning(1), "prompts of a single conditioning, got 2 combined ones"),
        ([[None, {}]], "encoded prompts, got an empty conditioning"),
        ([[torch.zeros(3), {}]], "encoded prompts, got an empty conditioning"),
        ([[torch.zeros(6, 16), {}]], "encoded prompts, got an empty conditioning"),
    ],
)
def test_conditionings_that_are_no_prompts_are_named(comfy, nodes, errors, given, message):
    denoiser = nodes("nodes.host.model").HostDenoiser(tiny_model())

    with pytest.raises(errors.InputError, match=message):
        denoiser.conditions([given], torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("pooled", "given", "message"),
    [
        (0, [[torch.zeros(1, 6, 24), {}]], r"text encoder of this model \(16 wide\), got 24"),
        (5, conditioning(0), "prompts with a pooled embedding, as this model reads, got none"),
    ],
)
def test_prompts_of_another_text_encoder_are_refused(comfy, nodes, errors, pooled, given, message):
    with pytest.raises(errors.InputError, match=message):
        nodes("nodes.host.text").check_text_encoder(tiny_model(pooled=pooled), [given])


def test_conditions_other_than_plain_tensors_are_refused_by_name(comfy, nodes, errors, monkeypatch):
    model, conds = tiny_model(), host_module("comfy.conds")
    monkeypatch.setattr(
        model.model, "extra_conds", lambda **given: {"references": conds.CONDList([torch.zeros(1, 4, 8, 8)])}
    )
    denoiser = nodes("nodes.host.model").HostDenoiser(model)

    with pytest.raises(errors.InputError, match="'references' as a CONDList"):
        denoiser.conditions([conditioning(0)], torch.zeros(1, 4, 8, 8))


class Lengths:
    """Read masks, lengths and a constant as newer families do: nothing is like padding to them."""

    def __call__(self, **given):
        context = given["cross_attn"]
        mask = torch.ones(1, context.shape[1])
        conds = host_module("comfy.conds")
        return {
            "c_crossattn": conds.CONDRegular(context),
            "attention_mask": conds.CONDRegular(mask),
            "num_tokens": conds.CONDConstant(context.shape[1]),
        }


def test_constants_and_masks_stay_with_their_prompt(comfy, nodes, monkeypatch):
    """The last prompt does not decide for all, and nothing is repeated to another length."""
    model = tiny_model()
    monkeypatch.setattr(model.model, "extra_conds", Lengths())
    denoiser = nodes("nodes.host.model").HostDenoiser(model)

    long, short = denoiser.conditions([conditioning(0, tokens=9), conditioning(1)], torch.zeros(1, 4, 8, 8))

    assert long.shapes() == {"context": (1, 9, 16), "attention_mask": (1, 9)}
    assert short.shapes() == {"context": (1, 6, 16), "attention_mask": (1, 6)}
    assert (long.constants, short.constants) == ({"num_tokens": 9}, {"num_tokens": 6})
    given = []
    monkeypatch.setattr(model.model, "apply_model", lambda x, sigma, **c: given.append(c["num_tokens"]) or x)
    together = nodes("domaingallery_core.model.denoiser").denoise_together
    x, sigma = torch.zeros(2, 4, 8, 8), torch.ones(2)
    together(denoiser, [(x, sigma, long), (x, sigma, short), (x, sigma, long)])
    assert given == [9, 6]


@pytest.mark.parametrize(("kind", "expected"), [("EPS", "epsilon"), ("V_PREDICTION", "v"), ("FLOW", "flow")])
def test_the_process_is_that_of_the_samplers(comfy, nodes, kind, expected):
    model = tiny_model(kind)

    process = nodes("nodes.host.model").process_of(model)

    assert process.kind == expected
    assert process.sigmas.dtype == torch.float64
    assert torch.equal(process.sigmas.float(), model.get_model_object("model_sampling").sigmas)


@pytest.mark.parametrize("kind", ["EDM", "V_PREDICTION_EDM", "STABLE_CASCADE", "IMG_TO_IMG"])
def test_other_predictions_are_refused_by_name(comfy, nodes, errors, kind):
    with pytest.raises(errors.InputError, match=f"epsilon, v or a flow, got .*{kind}"):
        nodes("nodes.host.model").process_of(tiny_model(kind))


def test_a_model_sampling_patch_is_respected(comfy, nodes):
    """A MODEL switched to v-prediction by a stock node trains on v."""
    sampling = host_module("comfy.model_sampling")
    model = tiny_model("EPS").clone()

    class Sampling(sampling.ModelSamplingDiscrete, sampling.V_PREDICTION):
        pass

    model.add_object_patch("model_sampling", Sampling(model.model.model_config))

    assert nodes("nodes.host.model").process_of(model).kind == "v"


def test_features_are_the_skip_tensors_and_nothing_after_them_runs(comfy, nodes):
    host = nodes("nodes.host.model")
    model = tiny_model()
    unet = model.model.diffusion_model
    later, skips = [], []
    # the host calls the layers of a block, not the block
    handles = [unet.middle_block[0].register_forward_hook(lambda *_: later.append(1))]
    handles += [
        block[-1].register_forward_hook(lambda m, i, out: skips.append(out)) for block in unet.input_blocks
    ]
    with host.training(model):
        denoiser = host.HostDenoiser(model)
        [condition] = denoiser.conditions([conditioning(0)], torch.zeros(1, 4, 8, 8))
        x = torch.randn(2, 4, 8, 8, requires_grad=True)
        features = denoiser.features(x, torch.full((2,), 0.5), condition)
        features[-1].sum().backward()
    for handle in handles:
        handle.remove()

    assert not later
    assert len(features) == len(unet.input_blocks)
    assert x.grad is not None
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(features, skips, strict=True))


def test_features_of_a_model_without_a_down_path_are_refused(comfy, nodes, errors):
    model = tiny_model()
    model.model.diffusion_model = nn.Identity()
    denoiser = nodes("nodes.host.model").HostDenoiser(model)

    with pytest.raises(errors.InputError, match="a model with features for the similarity term"):
        denoiser.features(torch.zeros(1, 4, 8, 8), torch.ones(1), None)


@pytest.mark.parametrize("without_gradients", [torch.inference_mode, torch.no_grad])
def test_training_leaves_the_model_as_it_was(comfy, nodes, without_gradients):
    """Weights keep their bytes and their very objects, also when the work inside fails."""
    host, management = nodes("nodes.host.model"), host_module("comfy.model_management")
    model = tiny_model()
    before, objects = weights_of(model), dict(model.model.named_parameters())

    with without_gradients():
        with pytest.raises(ZeroDivisionError), host.training(model) as device:
            assert device.type == "cpu"
            assert management.in_training
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            assert not any(p.is_inference() for p in model.model.parameters())
            raise ZeroDivisionError
        assert torch.is_inference_mode_enabled() == (without_gradients is torch.inference_mode)
        assert not torch.is_grad_enabled()

    assert not management.in_training
    assert same(before, weights_of(model))
    assert all(p is objects[name] for name, p in model.model.named_parameters())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_host_that_offloads_the_model_is_refused(comfy, nodes, errors, monkeypatch, streamed):
    """One that streams the weights need not load the model at all."""
    model = tiny_model()
    model.is_dynamic = lambda: streamed
    refused = pytest.raises(errors.InputError, match="Start the host without --novram")
    monkeypatch.setattr(
        host_module("comfy.model_management"),
        "load_models_gpu",
        lambda *_, **__: setattr(model.model, "model_lowvram", True),
    )

    with nullcontext() if streamed else refused, nodes("nodes.host.model").training(model):
        pass


def patched(model):
    """Return the MODEL with a LoRA of another origin applied, and a layer of another kind."""
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    with torch.inference_mode():
        clone = model.clone()
        assert clone.add_patches({key: ("diff", (torch.ones(32, 32) * 0.1,))}) == [key]
    clone.add_object_patch("diffusion_model.out.1", nn.Tanh())
    return clone


@pytest.mark.parametrize(("streamed", "loaded"), [(False, True), (True, True), (True, False)])
def test_patches_of_the_model_are_in_force_while_training(comfy, nodes, streamed, loaded):
    """A LoRA in the MODEL is part of the base, once, also where the host would stream the weights."""
    plain = tiny_model()
    before = weights_of(plain)
    model, prompts = patched(plain), tiny_prompts(nodes)
    x, sigma = tiny_latents(2), torch.tensor([0.4, 0.7])
    expected = predict_as_host(model, [prompts.first.target, prompts.first.source], x, sigma)

    model.is_dynamic = lambda: streamed
    if not loaded:
        host_module("comfy.model_management").unload_all_models()
    actual = predict(nodes, model, prompts, x, sigma)

    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    host_module("comfy.model_management").unload_all_models()
    assert same(before, weights_of(plain))
    assert type(plain.model.diffusion_model.out[1]) is nn.SiLU


class Packed(Tensor):
    """Stand for a weight that the host keeps quantised."""


def test_streamed_weights_become_ordinary_ones_of_their_kind(comfy, nodes):
    """In the type that the model computes in; one that is absent is made, and a quantised one stays so."""
    model = tiny_model()
    first, last = model.model.diffusion_model.input_blocks[0][0], model.model.diffusion_model.out[2]
    with torch.inference_mode():
        first.weight = nn.Parameter(first.weight.data.as_subclass(Packed), requires_grad=False)
        first.weight_comfy_model_dtype = torch.float16
        last.weight_comfy_model_dtype = torch.bfloat16
        last.bias = nn.Parameter(torch.empty(4, device="meta"), requires_grad=False)
        model.model.scale = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
        model.model.register_buffer("order", torch.arange(3))

    def everything():
        return dict(model.model.named_parameters()), dict(model.model.named_buffers())

    before = everything()
    with torch.inference_mode():
        context = nodes("nodes.host.model").resident(model)
        context.__enter__()
    inside = everything()
    weight, bias = last.weight, last.bias
    kept = first.weight, model.model.scale.tolist(), model.model.order.tolist()
    context.__exit__(None, None, None)

    for were, are, now in zip(before, inside, everything(), strict=True):
        assert were.keys() == are.keys() == now.keys()
        assert all(now[name] is tensor for name, tensor in were.items())
        assert not any(tensor.is_inference() or tensor.requires_grad for tensor in are.values())
    assert all(isinstance(tensor, nn.Parameter) for tensor in inside[0].values())
    assert not any(isinstance(tensor, nn.Parameter) for tensor in inside[1].values())
    assert weight.dtype == torch.bfloat16 and torch.equal(
        weight, before[0]["diffusion_model.out.2.weight"].bfloat16()
    )
    assert bias.dtype == torch.float32 and bias.tolist() == [0, 0, 0, 0]
    assert type(kept[0]) is Packed and kept[0].dtype == torch.float32
    assert kept[1:] == ([2, 2, 2], [0, 1, 2])


def test_latents_are_scaled_for_the_model_once(comfy, nodes):
    latents = tiny_latents(2)

    scaled = nodes("nodes.host.pixels.latents").training_latents(tiny_model(), latents)

    torch.testing.assert_close(scaled, latents.clone() * 0.18215)


def test_latents_of_another_family_are_refused(comfy, nodes, errors):
    with pytest.raises(errors.InputError, match=r"VAE of this model \(4 channels\), got 16"):
        nodes("nodes.host.pixels.latents").training_latents(tiny_model(), tiny_latents(2, channels=16))
