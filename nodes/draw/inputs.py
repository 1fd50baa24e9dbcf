"""Inputs that several of the nodes that draw have."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..host.drawing import AUTOMATIC
from ..inputs import sampler_input, scheduler_input, seed_input, steps_input
from ..sockets import Prompts
from .guidance import MODES

ALIASES = ["enhanced sampling", "attribute enhancement", "V-uncond", "VN-N", "dual guidance", "domaingallery"]
MODE_TOOLTIP = (
    "How to enhance the domain. none: plain guidance, right for the trained category. "
    "V-uncond: adds what the identifier alone stands for; the paper's choice for other categories. "
    "VN-N: adds what the identifier changes in the category."
)


def model_input() -> io.Input:
    return io.Model.Input("model", tooltip="The model with the LoRA of the domain applied.")


def prompt_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip='What to draw, for example "a sks dog in snow".'),
        io.Conditioning.Input("negative", tooltip="What to stay away from; often the empty prompt."),
    ]


def prompts_input(*, optional: bool = True) -> io.Input:
    return Prompts.Input(
        "prompts",
        optional=optional,
        tooltip="From Domain Prompts, with the category that is drawn here. VN-N compares with its "
        "category, V-uncond with its identifier alone.",
    )


def mode_input(default: str) -> io.Input:
    return io.Combo.Input("mode", options=MODES, default=default, tooltip=MODE_TOOLTIP)


def enhancement_input() -> io.Input:
    return io.Float.Input(
        "enhancement",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        round=0.001,
        tooltip="How strongly to enhance. 1 is the paper's, 0 is off and costs nothing, below 0 removes the "
        "domain. Lower it if images look over-saturated.",
    )


def sampler_inputs(*, follows: bool = False) -> list[io.Input]:
    """Return the inputs of a sampler.

    Args:
        follows: whether numbers of 0, choices of "automatic" and no latent stand for what suits the model.
    """
    also = (AUTOMATIC,) if follows else ()
    own, none = (f" {each}: what suits the model." if follows else "" for each in (AUTOMATIC, 0))
    return [
        seed_input("The seed of the noise."),
        steps_input(50, f"Sampling steps. 50 are the paper's.{none}", least=0 if follows else 1),
        sampler_input("ddim", f"The sampling method. ddim is the paper's.{own}", *also),
        scheduler_input(
            "ddim_uniform", f"How noise levels are spaced. ddim_uniform goes with ddim.{own}", *also
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
            "latent_image",
            optional=follows,
            tooltip="The latent to start from, for example from Empty Latent Image."
            + (" Without one, an image of the size that suits the model is drawn." if follows else ""),
        ),
    ]


def base_input() -> io.Input:
    return io.Conditioning.Input(
        "base",
        optional=True,
        tooltip='In place of prompts: the identifier alone for V-uncond, "a [category]" for VN-N, or any '
        "other prompt.",
    )


def limit_inputs() -> list[io.Input]:
    def share(name: str, default: float, tooltip: str) -> io.Input:
        return io.Float.Input(
            name, optional=True, advanced=True, default=default, min=0.0, max=1.0, step=0.01, round=0.001,
            tooltip=tooltip,
        )  # fmt: skip

    return [
        share("start_percent", 0.0, "Where in the schedule enhancement begins; 0 is the first step."),
        share(
            "end_percent",
            1.0,
            "Where in the schedule enhancement ends; the rest costs nothing extra.",
        ),
        share(
            "rescale",
            0.0,
            "How far to bring the contrast back to that without guidance. 0 is off.",
        ),
    ]
