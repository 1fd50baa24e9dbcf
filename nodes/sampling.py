"""Domain Guider and Domain KSampler: classifier-free guidance with attribute enhancement (paper Eq. 6)."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core import guidance
from ..domaingallery_core.errors import InputError
from .sockets import CATEGORY, Conditioning, DomainPrompts, Prompts

NONE, V_UNCOND, VN_N = MODES = ["none", "V-uncond", "VN-N"]


class EnhancedGuider(comfy.samplers.CFGGuider):
    """Guide like CFGGuider, with the conditional prediction shifted by the enhancement of Eq. 6."""

    def set_enhancement(self, mode: str, enhancement: float, prompts: DomainPrompts) -> None:
        """Choose how much of the domain to add; 0 or the mode "none" leave plain guidance.

        Raises:
            InputError: the mode is unknown, or the enhancement is not a number.
        """
        if mode not in MODES:
            raise InputError(f"Expected a mode among {', '.join(MODES)}, got {mode!r}. Choose one.")
        if not math.isfinite(enhancement):
            raise InputError(f"Expected the enhancement to be a finite number, got {enhancement!r}. Try 1.")
        self.mode, self.enhancement = mode, enhancement
        if self.enhances():
            base: Conditioning = prompts.bare if mode == V_UNCOND else prompts.source
            self.inner_set_conds({"base": base})

    def enhances(self) -> bool:
        """Tell whether sampling differs from plain guidance."""
        return self.mode != NONE and self.enhancement != 0

    def predict_noise(self, x, timestep, model_options={}, seed=None) -> Tensor:  # noqa: B006, the host's own
        if not self.enhances():
            return super().predict_noise(x, timestep, model_options, seed)
        positive, negative, base = (self.conds.get(name) for name in ("positive", "negative", "base"))
        plain = math.isclose(self.cfg, 1.0) and not model_options.get("disable_cfg1_optimization", False)
        if plain and self.mode == VN_N:  # neither guidance nor enhancement reads the negative
            negative = None
        # The host's order first, so that patches which ask for conditional and unconditional rows find them.
        conds = [positive, negative, base]
        target, uncond, base_out = self._predictions(conds, x, timestep, model_options)
        target = guidance.enhanced_target(
            uncond, target, base_out, enhancement=self.enhancement, mode=self.mode
        )
        out = [target, uncond]
        for hook in model_options.get("sampler_pre_cfg_function", []):
            out = hook(
                {
                    "conds": conds[:2], "conds_out": out, "cond_scale": self.cfg, "timestep": timestep,
                    "input": x, "sigma": timestep, "model": self.inner_model, "model_options": model_options,
                }
            )  # fmt: skip
        return comfy.samplers.cfg_function(
            self.inner_model, out[0], out[1], self.cfg, x, timestep,
            model_options=model_options, cond=positive, uncond=negative,
        )  # fmt: skip

    def _predictions(
        self, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """Return x0 for each conditioning, all evaluated in one batch."""
        evaluate = model_options.get("sampler_calc_cond_batch_function")
        if evaluate is None:
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return evaluate(
            {
                "conds": conds,
                "input": x,
                "sigma": timestep,
                "model": self.inner_model,
                "model_options": model_options,
            }
        )


def make_guider(
    model,
    positive: Conditioning,
    negative: Conditioning,
    prompts: DomainPrompts,
    mode: str,
    cfg: float,
    enhancement: float,
) -> EnhancedGuider:
    """Return a guider with everything set.

    Raises:
        InputError: a scale is not a number, or the mode is unknown.
    """
    if not math.isfinite(cfg):
        raise InputError(f"Expected cfg to be a finite number, got {cfg!r}. Try 7.5.")
    guider = EnhancedGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    guider.set_enhancement(mode, enhancement, prompts)
    return guider


def guidance_inputs() -> list[io.Input]:
    """Return the inputs that both nodes share."""
    return [
        io.Model.Input("model", tooltip="The model with the LoRA of the domain applied."),
        io.Conditioning.Input("positive", tooltip='What to draw, for example "a sks dog in snow".'),
        io.Conditioning.Input("negative", tooltip="What to stay away from; often the empty prompt."),
        Prompts.Input(
            "prompts",
            tooltip="From Domain Prompts, with the category that is drawn here. VN-N compares with its "
            "category, V-uncond with its identifier alone.",
        ),
        io.Combo.Input(
            "mode",
            options=MODES,
            default=NONE,
            tooltip="How to enhance the domain. none: plain guidance, right for the trained category. "
            "V-uncond: adds what the identifier alone stands for; the paper's choice for other categories. "
            "VN-N: adds what the identifier changes in the category.",
        ),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Guidance scale. 7.5 is the paper's; small models like less.",
        ),
        io.Float.Input(
            "enhancement",
            default=1.0,
            min=-10.0,
            max=10.0,
            step=0.05,
            round=0.001,
            tooltip="How strongly to enhance. 1 is the paper's, 0 is off and costs nothing. "
            "Lower it if images look over-saturated.",
        ),
    ]


ALIASES = ["enhanced sampling", "attribute enhancement", "V-uncond", "VN-N", "dual guidance", "domaingallery"]


class DomainGalleryGuider(io.ComfyNode):
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
            inputs=guidance_inputs(),
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, prompts, mode, cfg, enhancement) -> io.NodeOutput:
        return io.NodeOutput(make_guider(model, positive, negative, prompts, mode, cfg, enhancement))


class DomainGalleryKSampler(io.ComfyNode):
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
                *guidance_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=10000, tooltip="Sampling steps. 50 are the paper's."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="ddim",
                    tooltip="The sampling method. ddim is the paper's.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="ddim_uniform",
                    tooltip="How noise levels are spaced. ddim_uniform goes with ddim.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, part of the given latent image is kept.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="The latent to start from, for example from Empty Latent Image."
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The result, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, prompts, mode, cfg, enhancement,
        seed, steps, sampler_name, scheduler, denoise, latent_image,
    ) -> io.NodeOutput:  # fmt: skip
        guider = make_guider(model, positive, negative, prompts, mode, cfg, enhancement)
        schedule = comfy.samplers.KSampler(
            model, steps=steps, device=model.load_device, sampler=sampler_name, scheduler=scheduler,
            denoise=denoise, model_options=model.model_options,
        )  # fmt: skip
        return io.NodeOutput(sample(guider, sampler_name, schedule.sigmas, latent_image, seed, steps))


def sample(
    guider, sampler_name: str, sigmas: Tensor, latent: dict[str, Any], seed: int, steps: int
) -> dict[str, Any]:
    """Return a LATENT sampled from another, as KSampler does it."""
    model, out = guider.model_patcher, latent.copy()
    ratios = (out.pop("downscale_ratio_spacial", None), out.pop("downscale_ratio_temporal", None))
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    out["samples"] = guider.sample(
        comfy.sample.prepare_noise(samples, seed, latent.get("batch_index")),
        samples,
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    ).to(
        device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )
    return out
