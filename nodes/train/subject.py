"""Train Subject LoRA: DreamBooth with a LoRA, for chained personalization."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...domaingallery_core.methods import METHODS
from ..host.progress import node_id
from ..node import Node
from ..sockets import CATEGORY
from .inputs import option_inputs, training_inputs, training_outputs
from .length import plan_on
from .text_encoder import text_encoder_input, trained_adapter
from .training import run


class DomainGallerySubject(Node):
    """Learn a subject, to be drawn with or without a domain."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySubject",
            display_name="Train Subject LoRA",
            category=CATEGORY,
            description="Learns a subject, such as a person or a pet, by DreamBooth with a LoRA. Load it "
            "together with the LoRA of a domain to draw the subject in the domain.",
            search_aliases=["dreambooth", "subject", "character", "person", "personalization", "train lora"],
            inputs=[
                *training_inputs(METHODS["dreambooth_lora"], "the common recipe's"),
                *option_inputs(),
                text_encoder_input(),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, options=None, run_options=None,
        text_encoder=None,
    ) -> io.NodeOutput:  # fmt: skip
        plan = plan_on(model, options, "dreambooth_lora", steps, learning_rate, seed)
        trained = trained_adapter(text_encoder, prompts)
        return run(model, prompts, dataset, plan, node_id(cls), options=run_options, trained=trained)
