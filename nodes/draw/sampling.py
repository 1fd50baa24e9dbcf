"""Domain Guider, Domain Enhancement and Domain KSampler: attribute enhancement (paper Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.errors import InputError, shown
from ..host.drawing import chosen, empty_latents
from ..host.families import family_of
from ..host.progress import node_id, say
from ..host.text import check_text_encoder
from ..inputs import CFG, cfg_input
from ..node import Node
from ..sockets import CATEGORY, Conditioning, DomainPrompts
from .conditionings import check_encoder, lacks_lora
from .guidance import NO_LORA, NONE, V_UNCOND, enhance_model, make_enhancement
from .inputs import (
    ALIASES,
    base_input,
    enhancement_input,
    limit_inputs,
    mode_input,
    model_input,
    prompt_inputs,
    prompts_input,
    sampler_inputs,
)

#: A schedule has at most so many noise levels.
MOST_LEVELS = 100_000


def enhanced(
    model: ModelPatcher,
    conds: tuple[Conditioning, ...],
    mode: str,
    strength: float,
    prompts: DomainPrompts | None = None,
    base: Conditioning | None = None,
    *,
    start: float = 0.0,
    end: float = 1.0,
    rescale: float = 0.0,
    node: str | None = None,
) -> ModelPatcher:
    """Return a MODEL with an enhancement, and say on the node if there is no LoRA in it.

    Args:
        conds: what is known of the conditionings that it will be sampled with, the positive first.

    Raises:
        InputError: something in it cannot work.
    """
    enhancement = make_enhancement(
        mode, strength, prompts, base, start=start, end=end, rescale=rescale, node=node
    )
    known = [*conds, enhancement.base] if enhancement else list(conds)
    check_text_encoder(model, known)
    if enhancement and conds:
        check_encoder(convert_cond(enhancement.base), convert_cond(conds[0]))
    if conds and not enhancement and lacks_lora(model, map(convert_cond, conds)):
        say(node, NO_LORA)  # an enhancement says it when it is sampled, as a LoRA may be applied after it
    return enhance_model(model, enhancement)


def make_guider(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    prompts: DomainPrompts | None,
    mode: str,
    cfg: float,
    enhancement: float,
    **options: Any,
) -> comfy.samplers.CFGGuider:
    """Return the host's guider on a MODEL with an enhancement; options are those of `enhanced`.

    Raises:
        InputError: something in it cannot work.
    """
    if not positive:
        raise InputError("Expected a positive conditioning, got an empty one. Connect an encoded prompt.")
    patched = enhanced(model, (positive, negative), mode, enhancement, prompts, **options)
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sample(
    guider: comfy.samplers.CFGGuider,
    sampler_name: str,
    sigmas: Tensor,
    latent: dict[str, Any],
    seed: int,
    callback: Callable[[int, Tensor, Tensor, int], None],
) -> dict[str, Any]:
    """Return a LATENT sampled from another, as KSampler does it.

    Raises:
        InputError: it is of another model, or what comes out is not finite.
    """
    model, out = guider.model_patcher, latent.copy()
    ratios = (out.pop("downscale_ratio_spacial", None), out.pop("downscale_ratio_temporal", None))
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    check_latent_form(model, samples)
    drawn = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    if not drawn.is_nested and not bool(torch.isfinite(drawn).all()):
        raise InputError(
            "Expected latents of plain numbers from the model, got some that are not finite. Lower cfg and "
            "enhancement, or use the model in another precision."
        )
    management = comfy.model_management
    out["samples"] = drawn.to(device=management.intermediate_device(), dtype=management.intermediate_dtype())
    return out


def check_latent_form(model: ModelPatcher, samples: Tensor) -> None:
    """Raise InputError unless latents (B C ...) have the channels and dimensions of those of a MODEL."""
    form = model.get_model_object("latent_format")
    channels, dimensions = form.latent_channels, form.latent_dimensions
    if not samples.is_nested and (samples.shape[1], samples.ndim) != (channels, dimensions + 2):
        raise InputError(
            f"Expected latents of this model, with {channels} channels and {dimensions} dimensions, got "
            f"{shown(samples)}. Connect an empty latent of this kind of model, or encode with its VAE."
        )


def schedule(model: ModelPatcher, steps: int, sampler_name: str, scheduler: str, denoise: float) -> Tensor:
    """Return the noise levels that KSampler steps through: the last of steps / denoise ones.

    Raises:
        InputError: these would be too many to be listed.
    """
    if denoise > 0 and steps / denoise > MOST_LEVELS:
        raise InputError(
            f"Expected denoise to be 0 or at least {steps / MOST_LEVELS:g} for {steps} steps, got "
            f"{denoise:g}. Raise denoise."
        )
    return comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler_name, scheduler=scheduler,
        denoise=denoise, model_options=model.model_options,
    ).sigmas  # fmt: skip


class DomainGalleryGuider(Node):
    """Make a GUIDER for the host's custom samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryGuider",
            display_name="Domain Guider",
            category=CATEGORY,
            description="Guidance with attribute enhancement, for SamplerCustomAdvanced. Carries a domain "
            "over to categories that it was not trained on.",
            search_aliases=ALIASES,
            inputs=[
                model_input(), *prompt_inputs(), prompts_input(), mode_input(NONE), cfg_input(),
                enhancement_input(), base_input(), *limit_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, mode, cfg, enhancement, prompts=None, base=None,
        start_percent=0.0, end_percent=1.0, rescale=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        return io.NodeOutput(
            make_guider(
                model, positive, negative, prompts, mode, cfg, enhancement, base=base,
                start=start_percent, end=end_percent, rescale=rescale, node=node_id(cls),
            )
        )  # fmt: skip


class DomainGalleryEnhancement(Node):
    """Patch a MODEL, so that every sampler enhances."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryEnhancement",
            display_name="Domain Enhancement",
            category=CATEGORY,
            description="Attribute enhancement for KSampler and every other sampler: put it between the "
            "loaders and the sampler. Chain two of them for two domains.",
            search_aliases=["model patch", *ALIASES],
            inputs=[
                model_input(), prompts_input(), mode_input(V_UNCOND), enhancement_input(), base_input(),
                *limit_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, enhanced wherever it is sampled.")
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        mode,
        enhancement,
        prompts=None,
        base=None,
        start_percent=0.0,
        end_percent=1.0,
        rescale=0.0,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            enhanced(
                model, (), mode, enhancement, prompts, base,
                start=start_percent, end=end_percent, rescale=rescale, node=node_id(cls),
            )
        )  # fmt: skip


class DomainGalleryKSampler(Node):
    """Sample as KSampler does, with the guidance of Domain Guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryKSampler",
            display_name="Domain KSampler",
            category=CATEGORY,
            description="KSampler with attribute enhancement. With mode none it draws what KSampler draws.",
            search_aliases=["sampler", *ALIASES],
            inputs=[
                model_input(), *prompt_inputs(), prompts_input(), mode_input(NONE),
                cfg_input(f"{CFG} 0: what suits the model."), enhancement_input(),
                *sampler_inputs(follows=True), base_input(), *limit_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The result, for VAE Decode.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, mode, cfg, enhancement,
        seed, steps, sampler_name, scheduler, denoise, latent_image=None, prompts=None, base=None,
        start_percent=0.0, end_percent=1.0, rescale=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        drawing = family_of(model).drawing
        by = chosen(drawing, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler)
        if latent_image is None:
            latent_image = {"samples": empty_latents(model, 1, drawing.size, drawing.size)}
        guider = make_guider(
            model, positive, negative, prompts, mode, by["cfg"], enhancement, base=base,
            start=start_percent, end=end_percent, rescale=rescale, node=node_id(cls),
        )  # fmt: skip
        sigmas = schedule(model, by["steps"], by["sampler_name"], by["scheduler"], denoise)
        callback = latent_preview.prepare_callback(guider.model_patcher, by["steps"])
        return io.NodeOutput(sample(guider, by["sampler_name"], sigmas, latent_image, seed, callback))
