"""Train Baseline: what one would use in place of DomainGallery, on the same images."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...domaingallery_core.errors import InputError
from ...domaingallery_core.methods import METHODS
from ...domaingallery_core.methods.domainstudio import LOOKING, STYLE
from ...domaingallery_core.methods.terms import PRIOR
from ...domaingallery_core.run.optimizers import default_rate
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.trainables.tokens import TokenSettings
from ...domaingallery_core.trainables.weights import WeightSettings
from ..host.new_words import check_word, encoders_of
from ..host.progress import node_id
from ..node import Node
from ..settings import setting_input, weight_input
from ..sockets import (
    CATEGORY,
    Dataset,
    DomainPrompts,
    Embedding,
    Prompts,
    TrainedEmbedding,
    TrainingOptions,
)
from .inputs import data_inputs, length_inputs, option_inputs, training_outputs, training_seed_input
from .text_encoder import text_encoder_input, trained_adapter
from .trained import Trained, TrainedWeights, TrainedWord
from .training import run

#: What a user chooses, and what plans call it.
CHOICES = {
    METHODS[name].title: name
    for name in ("dreambooth", "dreambooth_lora", "domainstudio", "textual_inversion")
}
VARIANTS = ("published", "released")
#: The fields that are sockets.
SOCKETS = ("clip", "text_encoder", "style_prompts", "style_dataset")
NO_LORA = (
    "Expected a LoRA of this training, got an embedding: Textual Inversion changes no weight. Connect the "
    "output embedding to Save Trained Embedding."
)
NO_EMBEDDING = "Expected an embedding, got a LoRA. Choose Textual Inversion, or connect the output lora."


def fields() -> list[io.DynamicCombo.Option]:
    """Return the methods, each with the inputs that it has by itself."""
    prior, copies = weight_input(PRIOR), setting_input(WeightSettings, "copies", advanced=True)
    recipe = "the common recipe's"
    variant = io.Combo.Input(
        "variant",
        options=list(VARIANTS),
        default=VARIANTS[0],
        tooltip="published: what the formulas intend. released: what the authors' code computes.",
    )
    clip = io.Clip.Input(
        "clip", optional=True, tooltip="The text encoder of the model, which reads the new word. Needed here."
    )
    text_encoder = io.Clip.Input(
        "text_encoder",
        optional=True,
        tooltip="The text encoder of the model, if it is to learn as well. Without it, it stays as it is.",
    )
    style = [
        Prompts.Input(
            "style_prompts",
            optional=True,
            tooltip="To learn a style beside the images: a Domain Prompts with the same identifier, and a "
            "category such as dog in the olis style.",
        ),
        Dataset.Input("style_dataset", optional=True, tooltip="A Domain Dataset with images of the style."),
        weight_input(STYLE),
    ]
    of_method = {
        "DreamBooth": [*length_inputs(METHODS["dreambooth"], recipe), prior, copies, text_encoder],
        "DreamBooth LoRA": [
            *length_inputs(METHODS["dreambooth_lora"], recipe),
            prior,
            text_encoder_input(),
        ],
        "DomainStudio": [
            variant,
            *length_inputs(METHODS["domainstudio"], "the paper's"),
            prior,
            *map(weight_input, LOOKING),
            copies,
            *style,
        ],
        "Textual Inversion": [
            clip,
            *length_inputs(METHODS["textual_inversion"], recipe),
            *(setting_input(TokenSettings, name) for name in ("word", "vectors", "templates")),
        ],
    }
    return [io.DynamicCombo.Option(name, inputs) for name, inputs in of_method.items()]


class DomainGalleryBaseline(Node):
    """Train by DreamBooth, DomainStudio or Textual Inversion."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryBaseline",
            display_name="Train Baseline",
            category=CATEGORY,
            description="Learns the images by DreamBooth, DomainStudio or Textual Inversion: to compare with "
            "DomainGallery on the same images, or for its own sake.",
            search_aliases=[
                "dreambooth",
                "full finetune",
                "domainstudio",
                "textual inversion",
                "embedding",
                "comparison",
            ],
            inputs=[
                *data_inputs(),
                io.DynamicCombo.Input(
                    "method",
                    options=fields(),
                    tooltip="How the images are learned: in all weights, in a LoRA, in all weights through "
                    "pictures, or as a new word.",
                ),
                training_seed_input(),
                *option_inputs(),
            ],
            outputs=training_outputs(
                Embedding.Output(
                    display_name="embedding",
                    tooltip="The new word of Textual Inversion, for Save Trained Embedding.",
                )
            ),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model, prompts, dataset, method, seed, options=None, run_options=None) -> io.NodeOutput:
        plan = plan_of(method, seed, prompts, options)
        trained = trained_by(plan, prompts, method.get("clip") or method.get("text_encoder"))
        style = method.get("style_prompts"), method.get("style_dataset")
        output = run(
            model, prompts, dataset, plan, node_id(cls), options=run_options, trained=trained,
            subject=None if None in style else style,
        )  # fmt: skip
        lora, *others, report = output.result
        embedding: Any = ExecutionBlocker(NO_EMBEDDING)
        if plan.tokens is not None:
            lora, embedding = ExecutionBlocker(NO_LORA), TrainedEmbedding(lora, metadata=lora.metadata)
        return io.NodeOutput(lora, *others, embedding, report, ui=output.ui)


def plan_of(
    chosen: dict[str, Any], seed: int, prompts: DomainPrompts, options: TrainingOptions | None
) -> TrainingPlan:
    """Return the plan of a chosen method with its fields.

    Raises:
        InputError: a value cannot work.
    """
    given = {name: value for name, value in chosen.items() if name not in ("method", *SOCKETS)}
    name = CHOICES[chosen["method"]]
    style = [chosen.get(name) is not None for name in ("style_prompts", "style_dataset")]
    if any(style):
        if not all(style):
            raise InputError(
                "Expected prompts and images of the style, got one of them. Connect both style_prompts and "
                "style_dataset, or none."
            )
        name = f"{name}_style"
    if given.pop("variant", VARIANTS[0]) == "released":
        name = f"{name}_released"
    steps, learning_rate = given.pop("steps"), given.pop("learning_rate")
    weights = {key.removesuffix("_weight"): given.pop(key) for key in [*given] if key.endswith("_weight")}
    if "word" in given:
        given["word"] = given["word"].strip() or prompts.first.category
    own = {name: value for name, value in given.items() if value is not None}
    options = options or TrainingOptions()
    if learning_rate == METHODS[name].learning_rate:  # as it is where nobody typed one
        learning_rate = default_rate(options.values["optimizer"], learning_rate)
    return options.plan(name, steps, learning_rate, seed, own=own, **weights)


def trained_by(plan: TrainingPlan, prompts: DomainPrompts, clip: Any) -> Trained:
    """Return what a plan trains, beside a text encoder if there is one.

    Raises:
        InputError: a new word is to be learned without a text encoder, or by one that does not know the word
            that it begins with.
    """
    if plan.adapter is not None:
        return trained_adapter(clip, prompts)
    if plan.weights is not None:
        if clip is not None:
            encoders_of(clip)
        return TrainedWeights(clip, prompts)
    assert plan.tokens is not None
    if clip is None:
        raise InputError(
            "Expected the text encoder of the model, which Textual Inversion gives a new word, got none. "
            "Connect clip."
        )
    check_word(clip, plan.tokens.word)
    return TrainedWord(clip)
