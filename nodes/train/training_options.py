"""Domain Training Options: what decides a LoRA besides its length and learning rate."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ...domaingallery_core.data.parts import DataSettings
from ...domaingallery_core.methods import MethodSettings
from ...domaingallery_core.methods.erasure import ERASURE
from ...domaingallery_core.methods.terms import DISENTANGLEMENT, PRIOR, SIMILARITY
from ...domaingallery_core.run.optimizers import OptimizerSettings
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.settings import Settings, settings_of
from ...domaingallery_core.trainables.adapter_settings import AdapterSettings
from ..node import Node
from ..presets import LEFT_OPEN, PAPER, PRESETS, Preset
from ..settings import setting_input, weight_input
from ..sockets import CATEGORY, Options, TrainingOptions

#: The terms of both stages.
TERMS = (PRIOR, DISENTANGLEMENT, ERASURE, SIMILARITY)
PLAIN: list[tuple[type[Settings], str]] = [
    (AdapterSettings, "rank"),
    (AdapterSettings, "alpha"),
    (DataSettings, "batch_size"),
]
PLAIN_TOO: list[tuple[type[Settings], str]] = [
    (MethodSettings, "denoise_steps"),
    (MethodSettings, "offset_noise"),
]
#: What the paper leaves alone.
ADVANCED: list[tuple[type[Settings], str]] = [
    (AdapterSettings, "kind"),
    (AdapterSettings, "targets"),
    (AdapterSettings, "dropout"),
    (MethodSettings, "similarity_scale"),
    (MethodSettings, "denoise_guidance"),
    (OptimizerSettings, "accumulation"),
    (OptimizerSettings, "schedule"),
    (OptimizerSettings, "warmup_steps"),
    (OptimizerSettings, "ema"),
    (MethodSettings, "min_snr"),
    (OptimizerSettings, "optimizer"),
    (TrainingPlan, "precision"),
    (OptimizerSettings, "text_encoder_rate"),
]
#: Stands for the weight that the preset says, as 0 is a weight.
OPEN_WEIGHT = -1.0


class DomainGalleryOptions(Node):
    """Gather the settings that most trainings leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryOptions",
            display_name="Domain Training Options",
            category=CATEGORY,
            description="Settings of a training, with the paper's as defaults. A preset decides what is left "
            "open, here and in the nodes that these options go to. A loss term with weight 0 is not "
            "computed, which saves its time.",
            search_aliases=["preset", "rank", "alpha", "loss weights", "lora settings", "offset noise"],
            inputs=[
                *(_input(*place) for place in PLAIN),
                *map(_weight, TERMS),
                *(_input(*place) for place in PLAIN_TOO),
                *(_input(*place, advanced=True) for place in ADVANCED),
                preset_input(),
            ],
            outputs=[
                Options.Output(
                    display_name="options", tooltip="For the training nodes, and for Domain Source Images."
                )
            ],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        preset = PRESETS[values.get("preset", PAPER)]
        weights = {term.name: values[f"{term.name}_weight"] for term in TERMS}
        if weights[SIMILARITY.name] < 0:
            weights[SIMILARITY.name] = preset.similarity
        found = {}
        for kind, name in (*PLAIN, *PLAIN_TOO, *ADVANCED):
            said, default = settings_of(kind)[name]
            given = values.get(said.label or name, default)
            found[name] = given.strip() if isinstance(given, str) else given
        for name in ("batch_size", "accumulation"):
            found[name] = found[name] or getattr(preset, name)
        return io.NodeOutput(TrainingOptions(weights=weights, preset=preset, **found))


def preset_input() -> io.Input:
    """Return the input for a preset."""
    said = ". ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
    return io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default=PAPER,
        optional=True,
        tooltip=f"How much is done where a number is left at 0, a weight at -1. {said}. What you type stays.",
    )


def _input(kind: type[Settings], name: str, *, advanced: bool = False) -> Any:
    """Return the input for a setting; one that a preset decides begins with 0."""
    made: Any = setting_input(kind, name, advanced=advanced)
    if name in Preset.__dataclass_fields__:
        made.tooltip = f"{made.tooltip} 0: what the preset says, {made.default} by the paper's."
        made.default, made.min = LEFT_OPEN, LEFT_OPEN
    return made


def _weight(term: Any) -> Any:
    """Return the input for the weight of a term; that of the similarity begins with -1."""
    made: Any = weight_input(term)
    if term is SIMILARITY:
        made.tooltip = f"{made.tooltip} -1: what the preset says, {made.default:g} by the paper's."
        made.default, made.min = OPEN_WEIGHT, OPEN_WEIGHT
    return made
