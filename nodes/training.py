"""Erase Prior Attributes, Train Domain LoRA and Training Options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.adapters import Adapter
from ..domaingallery_core.config import LossWeights, TrainingPlan
from ..domaingallery_core.errors import AdapterError
from ..domaingallery_core.generators import generator
from ..domaingallery_core.lora_files import comfyui_to_core, core_to_comfyui
from ..domaingallery_core.trainer import StepEvent, TrainingResult, train
from .host import HostDenoiser, Progress, duration, kohya_names, node_id, training
from .sockets import (
    CATEGORY,
    Dataset,
    DomainPrompts,
    LatentDataset,
    Options,
    Prompts,
    TrainedLora,
    TrainingOptions,
)
from .training_data import Pair, check_parts, checked_category, training_data, with_prompts


def run(
    model: ModelPatcher,
    prompts: DomainPrompts,
    dataset: LatentDataset,
    plan: TrainingPlan,
    node: str | None,
    start: Mapping[str, Tensor] | None = None,
    *,
    also: Pair | None = None,
    subject: Pair | None = None,
) -> io.NodeOutput:
    """Train a LoRA on a MODEL by a plan; return LORA_MODEL, LOSS_MAP and the loss terms for a client.

    Args:
        also: further prompts whose identifier is erased with the domain's, on their own dataset.
        subject: what joint personalization learns beside the domain.
    """
    domain = with_prompts(prompts, dataset)
    if also is not None:
        domain += with_prompts(*also)
    check_parts(domain, plan)
    progress = Progress(node, plan.steps)
    progress.say("loading the model")
    with training(model) as device:
        denoiser = HostDenoiser(model)
        data, conditions = training_data(model, denoiser, domain, plan, device, subject)
        with Adapter.inject(
            model.model.diffusion_model, plan.adapter(), generator(plan.seed, "adapter")
        ) as adapter:
            if start is not None:
                adapter.load(start)
            result = train(denoiser, adapter, data, conditions, plan, lambda event: show(progress, event))
    lora = TrainedLora(
        core_to_comfyui(result.state_dict),
        metadata=metadata(prompts, plan, subject and subject[0]),
        kohya_names=kohya_names(model),
    )
    return io.NodeOutput(lora, loss_map(result), ui=interface(result))


def show(progress: Progress, event: StepEvent) -> None:
    """Show a step on the node."""
    left = duration(event.seconds_per_step * (event.total_steps - event.step))
    progress.update(
        event.step, f"step {event.step} of {event.total_steps}, loss {event.losses['total']:.4f}, {left} left"
    )


def metadata(
    prompts: DomainPrompts, plan: TrainingPlan, subject: DomainPrompts | None = None
) -> dict[str, str]:
    """Return what a file of the LoRA says about itself; the first keys are those that other programs read."""
    trigger = ", ".join(part.target_text for part in prompts.parts())
    if subject is not None:
        trigger = f"a {prompts.identifier} {subject.identifier} {subject.category}"
    return {
        "format": "pt",
        "modelspec.title": f"{prompts.identifier} {prompts.category}",
        "modelspec.trigger_phrase": trigger,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(plan.rank),
        "ss_network_alpha": f"{plan.alpha:g}",
        "domaingallery.plan": json.dumps(plan.to_dict()),
        "domaingallery.prompts": json.dumps(
            {
                "identifier": prompts.identifier,
                "category": prompts.category,
                "target": prompts.target_text,
                "source": prompts.source_text,
            }
        ),
    }


def loss_map(result: TrainingResult) -> dict[str, list[float]]:
    """Return a LOSS_MAP: "loss" for the host's plot, and each term under its own name."""
    terms = dict(result.losses)
    return {"loss": terms.pop("total", []), **terms}


def interface(result: TrainingResult) -> dict[str, list]:
    """Return what a client receives: the terms over the steps, seconds, and a line of text."""
    losses = {name: [float(f"{value:.5g}") for value in values] for name, values in result.losses.items()}
    last = losses["total"][-1] if losses.get("total") else float("nan")
    text = f"{result.steps} steps in {duration(result.seconds)}, last loss {last:.4f}"
    return {"losses": [losses], "seconds": [round(result.seconds, 3)], "text": [text]}


def starting_weights(
    erased: Mapping[str, Tensor], options: TrainingOptions | None
) -> tuple[dict[str, Tensor], TrainingOptions]:
    """Return the weights to begin with, and the options with their rank and alpha unless options are given.

    Raises:
        AdapterError: it is a LoRA of another kind.
    """
    weights = comfyui_to_core(erased)
    downs = {name: weight for name, weight in weights.items() if name.endswith(".lora_A.weight")}
    if not downs:
        raise AdapterError(
            "Expected a LoRA made by Erase Prior Attributes, got one with names such as "
            f"{next(iter(erased), '')!r}. Connect the lora output of that node."
        )
    if options is None:
        name, weight = next(iter(downs.items()))
        rank = weight.shape[0]
        alpha = float(weights.get(name.removesuffix("lora_A.weight") + "alpha", rank))
        options = TrainingOptions(rank=rank, alpha=alpha)
    return weights, options


def plan_of(
    method: str, steps: int, learning_rate: float, seed: int, options: TrainingOptions, **weights: float
) -> TrainingPlan:
    """Return the plan of a run; `weights` overrides loss weights."""
    return TrainingPlan(
        method=method,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        batch_size=options.batch_size,
        rank=options.rank,
        alpha=options.alpha,
        weights=replace(options.weights, **weights),
        denoise_steps=options.denoise_steps,
        offset_noise=options.offset_noise,
    )


def training_inputs(steps: int, learning_rate: float) -> list[io.Input]:
    """Return the inputs that both training nodes share."""
    return [
        io.Model.Input("model", tooltip="The model to learn on. It is left exactly as it was."),
        Prompts.Input("prompts", tooltip="From Domain Prompts."),
        Dataset.Input("dataset", tooltip="From Dataset."),
        io.Int.Input(
            "steps", default=steps, min=1, max=100000, tooltip=f"Training steps. The paper takes {steps}."
        ),
        io.Float.Input(
            "learning_rate",
            default=learning_rate,
            min=0.0,
            max=1.0,
            step=1e-6,
            tooltip=f"How far each step goes. {learning_rate:g} is the paper's, for Stable Diffusion; "
            "small models need more.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="The seed of everything random here. The same inputs give the same LoRA again.",
        ),
    ]


LORA_OUTPUT = "The LoRA: for Load LoRA Model, Save LoRA, or the next training."
LOSS_OUTPUT = "The losses over the steps, for Plot Loss Graph."
OPTIONS_TOOLTIP = "From Training Options; without it, the paper's settings."


class DomainGalleryErase(io.ComfyNode):
    """Run stage 1, prior attribute erasure (paper section 4.1, Eq. 5a)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryErase",
            display_name="Erase Prior Attributes",
            category=CATEGORY,
            description='Stage 1. Makes "a [identifier] [category]" mean no more than "a [category]", so '
            "that nothing the model knew of the word leaks into the domain. Needs no images of the domain.",
            search_aliases=[
                "prior attribute erasure",
                "pre-erase",
                "erase identifier",
                "train lora",
                "domaingallery",
            ],
            inputs=[
                *training_inputs(500, 1e-4),
                Options.Input("options", optional=True, tooltip=OPTIONS_TOOLTIP),
                Prompts.Input(
                    "subject_prompts",
                    optional=True,
                    tooltip="From a second Domain Prompts: another identifier that is erased with the first, "
                    "such as that of a subject. The steps are shared.",
                ),
                Dataset.Input(
                    "subject_dataset",
                    optional=True,
                    tooltip="Source images for the second identifier. Without it those of dataset serve, if "
                    "the category is the same.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip=LORA_OUTPUT),
                io.LossMap.Output(display_name="losses", tooltip=LOSS_OUTPUT),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, options=None, subject_prompts=None,
        subject_dataset=None,
    ) -> io.NodeOutput:  # fmt: skip
        plan = plan_of("erasure", steps, learning_rate, seed, options or TrainingOptions(), similarity=0.0)
        also = None
        if subject_prompts is not None:
            also = subject_prompts, checked_category(subject_prompts, subject_dataset, prompts, dataset)
        return run(model, prompts, dataset, plan, node_id(cls), also=also)


class DomainGalleryTrain(io.ComfyNode):
    """Run stage 2, finetuning on the domain (paper section 4.2, Eq. 5b)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryTrain",
            display_name="Train Domain LoRA",
            category=CATEGORY,
            description="Stage 2. Learns the domain from its images. Begins with the LoRA of Erase Prior "
            "Attributes if that is connected.",
            search_aliases=[
                "finetune",
                "few-shot",
                "train lora",
                "dreambooth",
                "style training",
                "domaingallery",
            ],
            inputs=[
                *training_inputs(1000, 5e-5),
                io.LoraModel.Input(
                    "erased",
                    optional=True,
                    tooltip="The LoRA of Erase Prior Attributes for the same model, identifier and category. "
                    "Its rank and alpha are kept.",
                ),
                Options.Input("options", optional=True, tooltip=OPTIONS_TOOLTIP),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip=LORA_OUTPUT),
                io.LossMap.Output(display_name="losses", tooltip=LOSS_OUTPUT),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, erased=None, options=None
    ) -> io.NodeOutput:
        start = None
        if erased is not None:
            start, options = starting_weights(erased, options)
        plan = plan_of("domaingallery", steps, learning_rate, seed, options or TrainingOptions(), erasure=0.0)
        return run(model, prompts, dataset, plan, node_id(cls), start)


class DomainGalleryOptions(io.ComfyNode):
    """Gather the settings that most trainings leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def weight(name: str, default: float, tooltip: str) -> io.Input:
            return io.Float.Input(
                f"{name}_weight", default=default, min=0.0, max=1000.0, step=0.1, tooltip=tooltip
            )

        return io.Schema(
            node_id="DomainGalleryOptions",
            display_name="Training Options",
            category=CATEGORY,
            description="Settings of both training stages, with the paper's as defaults. A loss term with "
            "weight 0 is not computed, which saves its time.",
            search_aliases=["rank", "alpha", "loss weights", "lora settings", "offset noise"],
            inputs=[
                io.Int.Input(
                    "rank",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA. Higher can learn more and forget more.",
                ),
                io.Float.Input(
                    "alpha",
                    default=4.0,
                    min=0.01,
                    max=1024.0,
                    step=0.5,
                    tooltip="Scale of the LoRA, divided by the rank. Equal to the rank is the plain choice.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Images of each kind in a step. The similarity term needs at least 3.",
                ),
                weight(
                    "prior", 1.0, "Weight of keeping the source images as they are (Eq. 1 on source images)."
                ),
                weight("disentanglement", 10.0, "Weight of leaving the category itself untouched (Eq. 3)."),
                weight("erasure", 10.0, "Weight of erasing what the identifier meant (Eq. 2); stage 1 only."),
                weight(
                    "similarity",
                    1.0,
                    "Weight of keeping images as different from each other as they were (Eq. 4); "
                    "stage 2 only. By far the slowest term.",
                ),
                io.Int.Input(
                    "denoise_steps",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Steps of the recurrent denoising inside the similarity term.",
                ),
                io.Float.Input(
                    "offset_noise",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Helps with domains that are much lighter or darker than most images, such as "
                    "pencil sketches: 0.1.",
                ),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For both training nodes.")],
        )

    @classmethod
    def execute(
        cls, rank, alpha, batch_size, prior_weight, disentanglement_weight, erasure_weight, similarity_weight,
        denoise_steps, offset_noise,
    ) -> io.NodeOutput:  # fmt: skip
        weights = LossWeights(
            prior=prior_weight,
            disentanglement=disentanglement_weight,
            erasure=erasure_weight,
            similarity=similarity_weight,
        )
        return io.NodeOutput(
            TrainingOptions(
                rank=rank,
                alpha=alpha,
                batch_size=batch_size,
                weights=weights,
                denoise_steps=denoise_steps,
                offset_noise=offset_noise,
            )
        )
