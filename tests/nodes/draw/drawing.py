"""Sampling through each node, and single predictions with the rows that they took."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.nodes.tiny import host_module

WAYS = ("Domain KSampler", "Domain Guider", "Domain Enhancement", "Domain Enhancement in SamplerCustom")
SAMPLING: dict[str, Any] = {
    "seed": 5, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "cfg": 3.0,
}  # fmt: skip


def latent(batch: int = 2, fill: float = 0.0) -> dict[str, Any]:
    return {"samples": torch.full((batch, 4, 8, 8), fill)}


def ksampler(model, positive, negative, start, **sampling: Any) -> Tensor:
    """Return what the stock KSampler draws."""
    o = SAMPLING | sampling
    with torch.inference_mode():
        return host_module("nodes").common_ksampler(
            model, o["seed"], o["steps"], o["cfg"], o["sampler_name"], o["scheduler"], positive, negative,
            start, denoise=o["denoise"],
        )[0]["samples"]  # fmt: skip


def draw(
    nodes: Callable[[str], Any],
    way: str,
    model,
    positive,
    negative,
    start,
    enhancement: dict[str, Any],
    **sampling: Any,
) -> Tensor:
    """Return what is drawn with an enhancement, whose inputs are named as on the nodes."""
    o = SAMPLING | sampling
    own, custom = nodes("nodes.draw.sampling"), importlib.import_module("comfy_extras.nodes_custom_sampler")
    samplers = host_module("comfy.samplers")
    with torch.inference_mode():
        if way == "Domain KSampler":
            node = own.DomainGalleryKSampler
            return node.execute(model, positive, negative, latent_image=start, **enhancement, **o)[0][
                "samples"
            ]
        sigmas = own.schedule(model, o["steps"], o["sampler_name"], o["scheduler"], o["denoise"])
        sampler = samplers.sampler_object(o["sampler_name"])
        if way == "Domain Guider":
            guider = own.DomainGalleryGuider.execute(model, positive, negative, cfg=o["cfg"], **enhancement)[
                0
            ]
            noise = custom.Noise_RandomNoise(o["seed"])
            return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, start)[0]["samples"]
        patched = own.DomainGalleryEnhancement.execute(model, **enhancement)[0]
        if way == "Domain Enhancement":
            return ksampler(patched, positive, negative, start, **sampling)
        return custom.SamplerCustom.execute(
            patched, True, o["seed"], o["cfg"], positive, negative, sampler, sigmas, start
        )[0]["samples"]


class _Once:
    """A sampler that predicts once and keeps it."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.x0: Tensor | None = None

    def sample(self, guider, sigmas, extra_args, callback, noise, *_):
        self.x0 = guider(noise, torch.full((len(noise),), self.sigma), **extra_args)
        return noise


def rows_of(model, run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """Return what a function gives, and the number of rows in each evaluation of the network meanwhile."""
    rows: list[int] = []
    unet = model.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    try:
        return run(), rows
    finally:
        handle.remove()


def predict_with(
    guider, *, sigma: float = 2.0, batch: int = 1, start=None, mask=None
) -> tuple[Tensor, list[int]]:
    """Return x0 of a guider for a fixed noise, and the rows that it took."""
    once = _Once(sigma)
    noise = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    start = torch.zeros_like(noise) if start is None else start

    def run() -> None:
        with torch.inference_mode():
            guider.sample(noise, start, once, torch.tensor([sigma, 0.0]), denoise_mask=mask, seed=0)

    _, rows = rows_of(guider.model_patcher, run)
    assert once.x0 is not None
    return once.x0, rows


def predict(model, positive, negative=None, *, cfg: float = 1.0, **options: Any) -> tuple[Tensor, list[int]]:
    """Return x0 of the host's own guider, and the rows that it took."""
    guider = host_module("comfy.samplers").CFGGuider(model)
    guider.set_conds(positive, negative if negative is not None else positive)
    guider.set_cfg(cfg)
    return predict_with(guider, **options)


def alone(model, conditioning, **options: Any) -> Tensor:
    """Return x0 for one conditioning, without guidance and without the patches that work on guidance."""
    bare = model.clone()
    for name in [name for name in bare.model_options if name.startswith("sampler_")]:
        del bare.model_options[name]
    return predict(bare, conditioning, **options)[0]


def patched(nodes, model, **enhancement: Any):
    """Return the MODEL out of Domain Enhancement."""
    with torch.inference_mode():
        return nodes("nodes.draw.sampling").DomainGalleryEnhancement.execute(model, **enhancement)[0]


def recorder() -> tuple[SimpleNamespace, dict[str, Any]]:
    """Return a record of calls, and hooks of a MODEL's options that write it and change nothing."""
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

    return seen, {
        "sampler_pre_cfg_function": [pre],
        "sampler_cfg_function": cfg,
        "sampler_post_cfg_function": [post],
    }
