"""Train Personalized LoRA: a domain and a subject in one LoRA."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..domaingallery_core.errors import InputError
from .node import Node
from .progress import node_id
from .sockets import CATEGORY, Dataset, LatentDataset, Prompts
from .training import plan_of, run, starting_weights
from .training_data import with_prompts
from .training_inputs import erased_input, option_inputs, training_inputs, training_outputs


class DomainGalleryPersonalize(Node):
    """Learn a domain and a subject together (paper section 4.5, Eq. 7)."""

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
                *training_inputs(1000, 5e-5, "the paper's for a domain alone"),
                Prompts.Input(
                    "subject_prompts",
                    tooltip="From a second Domain Prompts, with the word for the subject and its category.",
                ),
                Dataset.Input(
                    "subject_dataset",
                    tooltip="From a second Dataset: images of the subject, source images of its category.",
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
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, subject_prompts, subject_dataset,
        subject_weight, erased=None, options=None, run_options=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_subject(prompts, subject_prompts, subject_dataset)
        start, options = starting_weights(erased, options)
        plan = plan_of(
            "personalization", steps, learning_rate, seed, options, erasure=0.0, subject=subject_weight
        )
        return run(
            model, prompts, dataset, plan, node_id(cls), start, run_options,
            subject=(subject_prompts, subject_dataset),
        )  # fmt: skip


def check_subject(prompts, subject_prompts, subject_dataset: LatentDataset) -> None:
    """Raise InputError unless the subject has a word and images of its own, of one category and size."""
    if subject_prompts.identifier.casefold() == prompts.identifier.casefold():
        raise InputError(
            f"Expected different identifiers for domain and subject, got {prompts.identifier!r} for both. "
            "Enter another rare word in the Domain Prompts of the subject."
        )
    if subject_prompts.more or subject_dataset.more:
        raise InputError(
            "Expected a subject of one category, with images of one size, got several. "
            'Name one category, and set fit to "centre crop".'
        )
    with_prompts(subject_prompts, subject_dataset)
    if subject_dataset.target is None:
        raise InputError(
            "Expected images of the subject, got a dataset without them. "
            "Connect target_images of the Dataset node of the subject."
        )
