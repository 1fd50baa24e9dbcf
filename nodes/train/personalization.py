"""Train Personalized LoRA: a domain and a subject in one LoRA."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...domaingallery_core.methods import METHODS
from ..host.progress import node_id
from ..node import Node
from ..sockets import CATEGORY, Dataset, Prompts
from .data import check_subject
from .inputs import erased_input, option_inputs, training_inputs, training_outputs
from .length import plan_on
from .training import run, starting_weights


class DomainGalleryPersonalize(Node):
    """Learn a domain and a subject together (paper section 4.5, Eq. 7)."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryPersonalize",
            display_name="Train Personalized LoRA",
            category=CATEGORY,
            description="Learns a domain and a personal subject together, for pictures of the subject in the "
            'domain: "a [identifier] [subject identifier] [category of the subject]".',
            search_aliases=["joint personalization", "subject", "dreambooth", "character", "train lora"],
            inputs=[
                *training_inputs(METHODS["personalization"], "the paper's for a domain alone"),
                Prompts.Input(
                    "subject_prompts",
                    tooltip="From a second Domain Prompts, with the word for the subject and its category.",
                ),
                Dataset.Input(
                    "subject_dataset",
                    tooltip="From a second Domain Dataset: images of the subject, source images of its "
                    "category.",
                ),
                io.Float.Input(
                    "subject_weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Weight of learning the subject. 0 learns the domain alone.",
                ),
                erased_input("with the identifier of the domain or with both erased"),
                *option_inputs(),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, subject_prompts, subject_dataset,
        subject_weight, erased=None, options=None, run_options=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_subject(prompts, subject_prompts, subject_dataset)
        start, options = starting_weights(model, erased, options)
        plan = plan_on(model, options, "personalization", steps, learning_rate, seed, subject=subject_weight)
        return run(
            model, prompts, dataset, plan, node_id(cls), start, run_options,
            subject=(subject_prompts, subject_dataset),
        )  # fmt: skip
