"""Domain Enhancement Sweep: the same picture with several strengths and modes, side by side."""

from __future__ import annotations

import math
import time

from comfy.sampler_helpers import convert_cond
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.errors import InputError, shown
from ...domaingallery_core.pictures.grids import labelled_grid
from ..host.pixels.encoding import check_vae, pixels
from ..host.progress import Progress, duration, node_id
from ..inputs import cfg_input
from ..node import Node
from ..sockets import CATEGORY
from .conditionings import lacks_lora
from .guidance import NO_LORA, NONE, V_UNCOND, VN_N
from .inputs import (
    ALIASES,
    limit_inputs,
    model_input,
    prompt_inputs,
    prompts_input,
    sampler_inputs,
)
from .sampling import make_guider, sample, schedule

BOTH = "both"
MOST = 100


class DomainGallerySweep(Node):
    """Draw a grid of enhancements."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySweep",
            display_name="Domain Enhancement Sweep",
            category=CATEGORY,
            description="Draws the same picture with a list of enhancements, in one grid with labels, to "
            "choose mode and strength by eye.",
            search_aliases=["grid", "xy plot", "compare enhancement", *ALIASES],
            inputs=[
                model_input(),
                *prompt_inputs(),
                prompts_input(optional=False),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Combo.Input(
                    "modes", options=[BOTH, V_UNCOND, VN_N], default=BOTH, tooltip="A row for each mode."
                ),
                io.String.Input(
                    "enhancements",
                    default="0, 0.5, 1, 1.5",
                    tooltip="A column for each strength, with commas between them.",
                ),
                cfg_input(),
                *sampler_inputs(),
                *limit_inputs(),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="All pictures as one image, with labels.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, prompts, vae, modes, enhancements, cfg,
        seed, steps, sampler_name, scheduler, denoise, latent_image,
        start_percent=0.0, end_percent=1.0, rescale=0.0,
    ) -> io.NodeOutput:  # fmt: skip
        check_vae(model, vae)
        strengths = checked_strengths(enhancements)
        rows = [V_UNCOND, VN_N] if modes == BOTH else [modes]
        # Without enhancement the modes are the same.
        table = [[(mode if strength else NONE, strength) for strength in strengths] for mode in rows]
        guiders = {
            (mode, strength): make_guider(
                model, positive, negative, prompts, mode, cfg, strength,
                start=start_percent, end=end_percent, rescale=rescale, node=node_id(cls),
            )
            for row in table
            for mode, strength in row
        }  # fmt: skip
        sigmas = schedule(model, steps, sampler_name, scheduler, denoise)
        each = max(len(sigmas) - 1, 1)
        progress = Progress(node_id(cls), len(guiders) * each)
        started = time.perf_counter()
        drawn: dict[tuple[str, float], Tensor] = {}
        for key, guider in guiders.items():

            def show(step: int, x0: Tensor, x: Tensor, total: int, before: int = len(drawn)) -> None:
                done = before * each + min(step + 1, each)  # some samplers take more steps
                left = (time.perf_counter() - started) * (progress.total - done) / done
                progress.update(done, f"{before} of {len(guiders)} pictures, {duration(left)} left")

            latent = sample(guider, sampler_name, sigmas, latent_image, seed, show)
            drawn[key] = pixels(vae, latent["samples"])
        progress.say(f"{len(guiders)} pictures in {duration(time.perf_counter() - started)}")
        if lacks_lora(model, map(convert_cond, (positive, negative))):
            progress.say(NO_LORA)
        cells = [[drawn[key] for key in row] for row in table]
        return io.NodeOutput(labelled_grid(cells, rows, [f"{strength:g}" for strength in strengths]))


def checked_strengths(text: str) -> list[float]:
    """Return the numbers of a list with commas, each once.

    Raises:
        InputError: there are none or too many, or one is not a finite number.
    """
    strengths = []
    for part in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
        try:
            strengths.append(float(part))
        except ValueError:
            strengths.append(math.nan)
        if not math.isfinite(strengths[-1]):
            raise InputError(
                f"Expected numbers with commas between them, got {shown(part)} among the enhancements. "
                "Write for example 0, 0.5, 1."
            )
    strengths = list(dict.fromkeys(strengths))
    if not 1 <= len(strengths) <= MOST:
        raise InputError(
            f"Expected 1 to {MOST} enhancements, got {len(strengths)}. Write for example 0, 0.5, 1."
        )
    return strengths
