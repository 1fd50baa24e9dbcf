"""Enhanced guidance is Eq. 6 on the host's samplers, and plain guidance to the byte where it is off."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from tests.host.tiny import conditioning, host_module, tiny_model, tiny_prompts

ENHANCED = ["V-uncond", "VN-N"]


@pytest.fixture
def model(comfy):
    return tiny_model()


@pytest.fixture
def prompts(nodes):
    return tiny_prompts(nodes)


def latent(batch: int = 2) -> dict:
    return {"samples": torch.zeros(batch, 4, 8, 8)}


def domain_ksampler(nodes, model, prompts, latent, **changes):
    options = {
        "mode": "none", "cfg": 3.0, "enhancement": 0.7, "seed": 5, "steps": 3, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1.0,
    } | changes  # fmt: skip
    with torch.inference_mode():
        node = nodes("nodes.sampling").DomainGalleryKSampler
        return node.execute(model, prompts.target, prompts.empty, prompts, latent_image=latent, **options)[0]


def ksampler(model, prompts, latent, *, denoise=1.0, cfg=3.0, sampler_name="euler", scheduler="normal"):
    with torch.inference_mode():
        return host_module("nodes").common_ksampler(
            model, 5, 3, cfg, sampler_name, scheduler, prompts.target, prompts.empty, latent, denoise=denoise
        )[0]


@pytest.mark.parametrize("changes", [{"mode": "none"}, {"mode": "VN-N", "enhancement": 0.0}])
@pytest.mark.parametrize(
    ("sampler_name", "scheduler", "denoise", "cfg"),
    [
        ("euler", "normal", 1.0, 3.0),
        ("dpm_2_ancestral", "karras", 1.0, 3.0),
        ("ddim", "ddim_uniform", 0.5, 1.0),
    ],
)
def test_without_enhancement_it_is_the_stock_ksampler(
    nodes, model, prompts, changes, sampler_name, scheduler, denoise, cfg
):
    """The same bytes, whatever the sampler, also from an image."""
    start = latent() if denoise == 1.0 else {"samples": torch.ones(2, 4, 8, 8)}
    options = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise, "cfg": cfg}

    expected = ksampler(model, prompts, start, **options)
    actual = domain_ksampler(nodes, model, prompts, start, **options, **changes)

    assert actual.keys() == expected.keys()
    assert torch.equal(actual["samples"], expected["samples"])


@pytest.mark.parametrize("mode", ["none", *ENHANCED])
@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_guider_and_ksampler_draw_the_same(nodes, model, prompts, mode, sampler_name):
    custom = importlib.import_module("comfy_extras.nodes_custom_sampler")
    samplers = host_module("comfy.samplers")
    expected = domain_ksampler(nodes, model, prompts, latent(), mode=mode, sampler_name=sampler_name)

    with torch.inference_mode():
        guider = nodes("nodes.sampling").DomainGalleryGuider.execute(
            model, prompts.target, prompts.empty, prompts, mode, 3.0, 0.7
        )[0]
        sigmas = samplers.KSampler(model, 3, "cpu", sampler_name, "normal").sigmas
        actual = custom.SamplerCustomAdvanced.execute(
            custom.Noise_RandomNoise(5), guider, samplers.sampler_object(sampler_name), sigmas, latent()
        )[0]

    assert torch.equal(actual["samples"], expected["samples"])


def prediction(nodes, model, prompts, mode, cfg=3.0, enhancement=0.7, positive=None, **model_options):
    """Return one prediction of the guider, and the rows that the network was given for it."""
    rows = []
    unet = model.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    found = {}

    class Once:
        def sample(self, guider, sigmas, extra_args, callback, noise, *_):
            found["x0"] = guider(noise, sigmas[:1].expand(len(noise)), **extra_args)
            return noise

    try:
        with torch.inference_mode():
            guider = nodes("nodes.sampling").make_guider(
                model, positive or prompts.target, prompts.empty, prompts, mode, cfg, enhancement
            )
            guider.model_options = guider.model_options | model_options
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            guider.sample(noise, torch.zeros_like(noise), Once(), torch.tensor([2.0, 0.0]), seed=0)
    finally:
        handle.remove()
    return found["x0"], rows


def test_enhancement_is_equation_6_in_one_batch(nodes, model, prompts):
    """Each mode equals the formula on predictions that were made one by one, and costs one row more."""
    single = {
        name: prediction(nodes, model, prompts, "none", cfg=1.0, positive=getattr(prompts, name))[0]
        for name in ("target", "source", "bare", "empty")
    }
    t, n, v, u = (single[name] for name in ("target", "source", "bare", "empty"))
    expected = {
        "V-uncond": u + 3 * (t - u) + 3 * 0.7 * (v - u),
        "VN-N": u + 3 * (t - u) + 3 * 0.7 * (t - n),
    }

    for mode in ENHANCED:
        x0, rows = prediction(nodes, model, prompts, mode)
        torch.testing.assert_close(x0, expected[mode], rtol=1e-3, atol=1e-4)
        assert rows == [3]
    assert prediction(nodes, model, prompts, "none")[1] == [2]


def test_cfg_1_stays_exact_and_skips_what_it_can(nodes, model, prompts):
    single = {
        name: prediction(nodes, model, prompts, "none", cfg=1.0, positive=getattr(prompts, name))
        for name in ("target", "source", "bare", "empty")
    }
    t, n, v, u = (single[name][0] for name in ("target", "source", "bare", "empty"))

    with_source, source_rows = prediction(nodes, model, prompts, "VN-N", cfg=1.0)
    with_bare, bare_rows = prediction(nodes, model, prompts, "V-uncond", cfg=1.0)

    torch.testing.assert_close(with_source, t + 0.7 * (t - n), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(with_bare, t + 0.7 * (v - u), rtol=1e-3, atol=1e-4)
    assert (single["target"][1], source_rows, bare_rows) == ([1], [2], [3])


@pytest.mark.parametrize("mode", ENHANCED)
def test_guidance_hooks_are_called_once_with_what_they_expect(nodes, model, prompts, mode):
    """Pre-cfg hooks see two predictions, the cfg function and post-cfg hooks the shifted one."""
    seen = SimpleNamespace(pre=[], cfg=[], post=[])

    def pre(args):
        seen.pre.append(args)
        return args["conds_out"]

    def cfg(args):
        seen.cfg.append(args)
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    def post(args):
        seen.post.append(args)
        return args["denoised"]

    plain, _ = prediction(nodes, model, prompts, mode)
    hooked, _ = prediction(
        nodes, model, prompts, mode, sampler_pre_cfg_function=[pre], sampler_cfg_function=cfg,
        sampler_post_cfg_function=[post],
    )  # fmt: skip

    torch.testing.assert_close(hooked, plain, rtol=1e-3, atol=1e-4)
    assert (len(seen.pre), len(seen.cfg), len(seen.post)) == (1, 1, 1)
    assert len(seen.pre[0]["conds"]) == len(seen.pre[0]["conds_out"]) == 2
    assert torch.equal(seen.post[0]["cond_denoised"], seen.pre[0]["conds_out"][0])
    assert {"cond", "uncond", "cond_scale", "model", "sigma", "model_options", "input"} <= seen.post[0].keys()


def test_prompts_of_other_lengths_can_be_mixed(nodes, model, prompts):
    x0, _ = prediction(nodes, model, prompts, "VN-N", positive=conditioning(9, tokens=12))

    assert torch.isfinite(x0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "V"}, "mode among none, V-uncond, VN-N, got 'V'"),
        ({"enhancement": float("nan")}, "enhancement to be a finite number, got nan"),
        ({"cfg": float("inf")}, "cfg to be a finite number, got inf"),
    ],
)
def test_scales_that_are_not_numbers_are_refused(nodes, model, prompts, changes, message):
    with pytest.raises(Exception, match=message):
        domain_ksampler(nodes, model, prompts, latent(), **({"mode": "VN-N"} | changes))
