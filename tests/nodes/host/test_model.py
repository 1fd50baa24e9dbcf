"""The core's view of a host MODEL is the host's own view of it, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch

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
        conditions = denoiser.conditions([prompts.target, prompts.source], x.clone())
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

    expected = predict_as_host(model, [prompts.target, prompts.source], x, sigma)
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


def test_prompts_of_different_length_are_attended_to_as_before(comfy, nodes):
    model = tiny_model()
    long, short = conditioning(0, tokens=9), conditioning(1, tokens=6)
    prompts = nodes("nodes.sockets").DomainPrompts(
        identifier="sks", category="face", target=long, source=short, bare=short, empty=short
    )
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


def test_a_patch_that_stops_the_gradient_is_named(comfy, nodes):
    model = tiny_model()
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"]).detach()
    )

    with pytest.raises(Exception, match="losses with a gradient, got some without"):
        erase(nodes, model)


@pytest.mark.parametrize("empty", [[], [[None, {}]], [[torch.zeros(3), {}]]])
def test_an_empty_conditioning_is_named(comfy, nodes, empty):
    model = tiny_model()
    with (
        nodes("nodes.host.model").training(model),
        pytest.raises(Exception, match=r"Expected (encoded )?prompts"),
    ):
        nodes("nodes.host.model").HostDenoiser(model).conditions([empty], torch.zeros(1, 4, 8, 8))


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
def test_other_predictions_are_refused_by_name(comfy, nodes, kind):
    with pytest.raises(Exception, match=f"epsilon, v or a flow, got .*{kind}"):
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


def test_training_leaves_the_model_as_it_was(comfy, nodes):
    """Weights keep their bytes and their very objects, also when the work inside fails."""
    host, management = nodes("nodes.host.model"), host_module("comfy.model_management")
    model = tiny_model()
    before, objects = weights_of(model), dict(model.model.named_parameters())

    with torch.inference_mode():
        with pytest.raises(ZeroDivisionError), host.training(model) as device:
            assert device.type == "cpu"
            assert management.in_training
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            assert not any(p.is_inference() for p in model.model.parameters())
            raise ZeroDivisionError
        assert torch.is_inference_mode_enabled()

    assert not management.in_training
    assert same(before, weights_of(model))
    assert all(p is objects[name] for name, p in model.model.named_parameters())


def patched(model):
    """Return the MODEL with a LoRA of another origin applied."""
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    with torch.inference_mode():
        clone = model.clone()
        assert clone.add_patches({key: ("diff", (torch.ones(32, 32) * 0.1,))}) == [key]
    return clone


@pytest.mark.parametrize("way", ["training", "resident"])
def test_patches_of_the_model_are_in_force_while_training(comfy, nodes, way):
    """A LoRA in the MODEL is part of the base; `resident` does for streamed weights what loading does."""
    host = nodes("nodes.host.model")
    plain = tiny_model()
    before = weights_of(plain)
    model, prompts = patched(plain), tiny_prompts(nodes)
    x, sigma = tiny_latents(2), torch.tensor([0.4, 0.7])
    expected = predict_as_host(model, [prompts.target, prompts.source], x, sigma)

    if way == "training":
        actual = predict(nodes, model, prompts, x, sigma)
    else:
        with torch.inference_mode():
            context = host.resident(model)
            context.__enter__()
        with torch.inference_mode(False), torch.no_grad():
            assert not any(t.is_inference() for t in model.model.state_dict(keep_vars=True).values())
            denoiser = host.HostDenoiser(model)
            conditions = denoiser.conditions([prompts.target, prompts.source], x.clone())
            actual = [denoiser(x.clone(), sigma, condition) for condition in conditions]
        context.__exit__(None, None, None)

    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    host_module("comfy.model_management").unload_all_models()
    assert same(before, weights_of(plain))


def test_latents_are_scaled_for_the_model_once(comfy, nodes):
    latents = tiny_latents(2)

    scaled = nodes("nodes.host.model").training_latents(tiny_model(), latents)

    torch.testing.assert_close(scaled, latents.clone() * 0.18215)


def test_latents_of_another_family_are_refused(comfy, nodes):
    with pytest.raises(Exception, match=r"VAE of this model \(4 channels\), got 16"):
        nodes("nodes.host.model").training_latents(tiny_model(), tiny_latents(2, channels=16))
