"""Erase Prior Attributes, Train Domain LoRA and Training Options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.adapter_kinds import TITLES, describe
from ..domaingallery_core.adapters import TARGETS, Adapter
from ..domaingallery_core.config import LossWeights, SimilarityScale, TrainingPlan
from ..domaingallery_core.datasets import Dataset as CoreDataset
from ..domaingallery_core.datasets import Examples
from ..domaingallery_core.denoiser import Conditions
from ..domaingallery_core.errors import InputError
from ..domaingallery_core.generators import generator
from ..domaingallery_core.lora_files import comfyui_to_core, core_to_comfyui
from ..domaingallery_core.trainer import StepEvent, TrainingResult, train
from .host import HostDenoiser, Progress, duration, kohya_names, node_id, training, training_latents
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


def run(
    model: ModelPatcher,
    prompts: DomainPrompts,
    dataset: LatentDataset,
    plan: TrainingPlan,
    node: str | None,
    start: Mapping[str, Tensor] | None = None,
) -> io.NodeOutput:
    """Train a LoRA on a MODEL by a plan; return LORA_MODEL, LOSS_MAP and the loss terms for a client."""
    progress = Progress(node, plan.steps)
    progress.say("loading the model")
    with training(model) as device:
        data = core_dataset(model, dataset, plan, device)
        denoiser = HostDenoiser(model)
        encoded = denoiser.conditions(
            [prompts.target, prompts.source, prompts.empty], (data.source or data.target).latents
        )
        conditions = Conditions(target=encoded[0], source=encoded[1], empty=encoded[2])
        with Adapter.inject(
            model.model.diffusion_model, plan.adapter(), generator(plan.seed, "adapter")
        ) as adapter:
            if start is not None:
                adapter.load(adapter.imported(start))
            result = train(denoiser, adapter, data, conditions, plan, lambda event: show(progress, event))
            tensors = core_to_comfyui(adapter.exported(result.state_dict))
    lora = TrainedLora(tensors, metadata=metadata(prompts, plan), kohya_names=kohya_names(model))
    return io.NodeOutput(lora, loss_map(result), ui=interface(result))


def core_dataset(model: ModelPatcher, dataset: LatentDataset, plan: TrainingPlan, device) -> CoreDataset:
    """Return the part of a dataset that a plan reads, as the model sees it.

    Raises:
        InputError: the plan needs target images and there are none.
    """
    if plan.needs_target() and dataset.target is None:
        raise InputError(
            "Expected images of the domain, got a dataset without them. "
            "Connect target_images of the Dataset node."
        )
    target, source = (
        Examples(training_latents(model, latents, device)) if needed and latents is not None else None
        for latents, needed in ((dataset.target, plan.needs_target()), (dataset.source, plan.needs_source()))
    )
    return CoreDataset(target=target, source=source)


def show(progress: Progress, event: StepEvent) -> None:
    """Show a step on the node."""
    left = duration(event.seconds_per_step * (event.total_steps - event.step))
    progress.update(
        event.step, f"step {event.step} of {event.total_steps}, loss {event.losses['total']:.4f}, {left} left"
    )


def metadata(prompts: DomainPrompts, plan: TrainingPlan) -> dict[str, str]:
    """Return what a file of the LoRA says about itself; the first keys are those that other programs read."""
    return {
        "format": "pt",
        "modelspec.title": f"{prompts.identifier} {prompts.category}",
        "modelspec.trigger_phrase": prompts.target_text,
        "ss_network_module": "lycoris.kohya" if plan.adapter_kind in ("loha", "lokr") else "networks.lora",
        "ss_network_args": json.dumps({"algo": plan.adapter_kind}),
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
    """Return the weights to begin with, and options of their kind, rank and alpha unless options are given.

    Raises:
        AdapterError: it is a LoRA of another origin.
    """
    weights = comfyui_to_core(erased)
    kind, rank, alpha = describe(weights)
    return weights, options or TrainingOptions(adapter=kind, rank=rank, alpha=alpha)


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
        adapter_kind=options.adapter,
        targets=options.targets,
        dropout=options.dropout,
        similarity_scale=options.similarity_scale,
        denoise_guidance=options.denoise_guidance,
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
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip=LORA_OUTPUT),
                io.LossMap.Output(display_name="losses", tooltip=LOSS_OUTPUT),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, prompts, dataset, steps, learning_rate, seed, options=None) -> io.NodeOutput:
        plan = plan_of("erasure", steps, learning_rate, seed, options or TrainingOptions(), similarity=0.0)
        return run(model, prompts, dataset, plan, node_id(cls))


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
                io.Combo.Input(
                    "adapter",
                    options=list(TITLES),
                    default="lora",
                    optional=True,
                    tooltip="What is trained. lora: the paper's. dora: LoRA and a magnitude for each output. "
                    "loha, lokr: products that reach a higher rank with few weights. All load as LoRA files.",
                ),
                io.String.Input(
                    "targets",
                    default="attention",
                    optional=True,
                    tooltip=f"Which layers learn: {', '.join(TARGETS)}, or a regular expression that matches "
                    "whole module names. attention is the paper's.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.05,
                    optional=True,
                    tooltip="Share of the adapter that is left out at random in a step. The paper has 0.",
                ),
                io.Combo.Input(
                    "similarity_scale",
                    options=list(get_args(SimilarityScale)),
                    default="released",
                    optional=True,
                    tooltip="How the similarity term is scaled. released: as the authors' code computes it. "
                    "paper: as the paper prints it, about batch size minus 1 times as much.",
                ),
                io.Float.Input(
                    "denoise_guidance",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    optional=True,
                    tooltip="Guidance scale of the denoising inside the similarity term. 1 is none, the "
                    "reference's; others double its work.",
                ),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For both training nodes.")],
        )

    @classmethod
    def execute(
        cls, rank, alpha, batch_size, prior_weight, disentanglement_weight, erasure_weight, similarity_weight,
        denoise_steps, offset_noise, adapter="lora", targets="attention", dropout=0.0,
        similarity_scale="released", denoise_guidance=1.0,
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
                adapter=adapter,
                targets=targets.strip(),
                dropout=dropout,
                similarity_scale=similarity_scale,
                denoise_guidance=denoise_guidance,
            )
        )
