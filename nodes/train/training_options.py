"""Training Options: what decides a LoRA besides its length and learning rate."""

from __future__ import annotations

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


class DomainGalleryOptions(Node):
    """Gather the settings that most trainings leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryOptions",
            display_name="Training Options",
            category=CATEGORY,
            description="Settings of a training, with the paper's as defaults. A loss term with "
            "weight 0 is not computed, which saves its time.",
            search_aliases=["rank", "alpha", "loss weights", "lora settings", "offset noise"],
            inputs=[
                *(setting_input(*place) for place in PLAIN),
                *map(weight_input, TERMS),
                *(setting_input(*place) for place in PLAIN_TOO),
                *(setting_input(*place, advanced=True) for place in ADVANCED),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For the training nodes.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        weights = {term.name: values[f"{term.name}_weight"] for term in TERMS}
        found = {}
        for kind, name in (*PLAIN, *PLAIN_TOO, *ADVANCED):
            said, default = settings_of(kind)[name]
            given = values.get(said.label or name, default)
            found[name] = given.strip() if isinstance(given, str) else given
        return io.NodeOutput(TrainingOptions(weights=weights, **found))
