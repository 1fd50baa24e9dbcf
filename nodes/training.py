"""Erase Prior Attributes, Train Domain LoRA and Training Options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.adapters import Adapter
from ..domaingallery_core.config import LossWeights, Optimizer, Precision, Schedule, TrainingPlan
from ..domaingallery_core.errors import AdapterError
from ..domaingallery_core.fingerprints import run_identity, weights_hash
from ..domaingallery_core.generators import generator
from ..domaingallery_core.lora_files import comfyui_to_core, core_to_comfyui
from ..domaingallery_core.trainer import TrainingResult, train
from .host import HostDenoiser, duration, kohya_names, node_id, training
from .live import Live, plot_image, preview_image
from .pictures import VALIDATION
from .run_options import checkpoints_of, monitor_of
from .saving_memory import gradient_checkpointing, precision
from .sockets import (
    CATEGORY,
    Dataset,
    DomainPrompts,
    LatentDataset,
    Options,
    Prompts,
    Run,
    RunOptions,
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
    options: RunOptions | None = None,
    *,
    also: Pair | None = None,
    subject: Pair | None = None,
) -> io.NodeOutput:
    """Train a LoRA on a MODEL by a plan; return what a training node gives, also to a client.

    Args:
        also: further prompts whose identifier is erased with the domain's, on their own dataset.
        subject: what joint personalization learns beside the domain.
    """
    domain = with_prompts(prompts, dataset)
    if also is not None:
        domain += with_prompts(*also)
    check_parts(domain, plan)
    options = options or RunOptions()
    live = Live(node, model, plan.steps)
    live.progress.say("loading the model")
    with training(model) as device, precision(model, plan.precision) as dtype:
        denoiser = HostDenoiser(model)
        data, conditions = training_data(model, denoiser, domain, plan, device, subject)
        base = weights_hash(model.model.diffusion_model)
        network = model.model.diffusion_model
        with (
            gradient_checkpointing(model, options.gradient_checkpointing),
            Adapter.inject(network, plan.adapter(), generator(plan.seed, "adapter")) as adapter,
        ):
            if start is not None:
                adapter.load(start)
            identity = run_identity(adapter, data, conditions, plan, base) | {"computes in": str(dtype)}
            checkpoints = checkpoints_of(options, prompts.target_text, plan.method, identity)
            try:
                result = train(
                    denoiser, adapter, data, conditions, plan, live.show, checkpoints=checkpoints,
                    monitor=monitor_of(options),
                )  # fmt: skip
            except BaseException:
                live.stopped(checkpoints)
                raise
    lora = TrainedLora(
        core_to_comfyui(result.state_dict),
        metadata=metadata(prompts, plan, base, result.steps, subject and subject[0]),
        kohya_names=kohya_names(model),
    )
    previews = preview_image(model, dataset.vae, result)
    return io.NodeOutput(lora, loss_map(result), plot_image(result), previews, ui=interface(result))


def metadata(
    prompts: DomainPrompts, plan: TrainingPlan, base: str, step: int, subject: DomainPrompts | None = None
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
        "ss_steps": str(step),
        "domaingallery.base_model_hash": base,
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
    """Return a LOSS_MAP: "loss" for the host's plot, each term by its name, and the validation loss."""
    terms = dict(result.losses)
    found = {"loss": terms.pop("total", []), **terms}
    return found | {VALIDATION: list(result.validation.values())} if result.validation else found


def interface(result: TrainingResult) -> dict[str, list]:
    """Return what a client receives: the terms over the steps, seconds, and a line of text."""
    losses = {name: [float(f"{value:.5g}") for value in values] for name, values in result.losses.items()}
    last = losses["total"][-1] if losses.get("total") else float("nan")
    since = f", gone on from step {result.resumed}" if result.resumed else ""
    text = f"{result.steps} steps{since} in {duration(result.seconds)}, last loss {last:.4f}"
    found = {"losses": [losses], "seconds": [round(result.seconds, 3)], "text": [text]}
    return found | {VALIDATION: [result.validation]} if result.validation else found


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
        accumulation=options.accumulation,
        schedule=options.schedule,
        warmup_steps=options.warmup_steps,
        ema=options.ema,
        min_snr=options.min_snr,
        optimizer=options.optimizer,
        precision=options.precision,
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
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="The seed of everything random here. The same inputs give the same LoRA again, and a "
            "training that was cancelled goes on.",
        ),
    ]


LORA_OUTPUT = "The LoRA: for Load LoRA Model, Save LoRA, or the next training."
LOSS_OUTPUT = "The losses over the steps, for Plot Loss Graph."
OPTIONS_TOOLTIP = "From Training Options; without it, the paper's settings."
RUN_TOOLTIP = "From Run Options: previews, checkpoints, memory. A cancelled training goes on without it, too."


def training_outputs() -> list[io.Output]:
    """Return the outputs that both training nodes share."""
    return [
        io.LoraModel.Output(display_name="lora", tooltip=LORA_OUTPUT),
        io.LossMap.Output(display_name="losses", tooltip=LOSS_OUTPUT),
        io.Image.Output(display_name="plot", tooltip="Each loss term over the steps, as a picture."),
        io.Image.Output(
            display_name="previews",
            tooltip="What the LoRA draws over the steps, beginning with the base model. "
            "Needs preview_every of Run Options.",
        ),
    ]


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
                Run.Input("run_options", optional=True, tooltip=RUN_TOOLTIP),
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
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, options=None, run_options=None,
        subject_prompts=None, subject_dataset=None,
    ) -> io.NodeOutput:  # fmt: skip
        plan = plan_of("erasure", steps, learning_rate, seed, options or TrainingOptions(), similarity=0.0)
        also = None
        if subject_prompts is not None:
            also = subject_prompts, checked_category(subject_prompts, subject_dataset, prompts, dataset)
        return run(model, prompts, dataset, plan, node_id(cls), options=run_options, also=also)


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
                Run.Input("run_options", optional=True, tooltip=RUN_TOOLTIP),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, erased=None, options=None, run_options=None
    ) -> io.NodeOutput:
        start = None
        if erased is not None:
            start, options = starting_weights(erased, options)
        plan = plan_of("domaingallery", steps, learning_rate, seed, options or TrainingOptions(), erasure=0.0)
        return run(model, prompts, dataset, plan, node_id(cls), start, run_options)


def advanced_inputs() -> list[io.Input]:
    """Return the inputs of Training Options that the paper leaves alone."""
    return [
        io.Int.Input(
            "accumulation",
            default=1,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Batches whose gradients make one step, for the effect of a larger batch in the memory "
            "of a small one. Takes as many times longer.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(get_args(Schedule)),
            default="constant",
            advanced=True,
            tooltip="How the learning rate goes down over the steps.",
        ),
        io.Int.Input(
            "warmup_steps",
            default=0,
            min=0,
            max=100000,
            advanced=True,
            tooltip="Steps in which the learning rate rises from near 0.",
        ),
        io.Float.Input(
            "ema",
            default=0.0,
            min=0.0,
            max=0.99999,
            step=0.001,
            round=0.00001,
            advanced=True,
            tooltip="Decay of a moving average over the steps, which becomes the LoRA: 0.99 smooths the last "
            "hundred. 0 for none.",
        ),
        io.Float.Input(
            "min_snr",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="Gamma of Min-SNR weighting of the target and prior terms, commonly 5. 0 for none.",
        ),
        io.Combo.Input(
            "optimizer",
            options=list(get_args(Optimizer)),
            default="adamw",
            advanced=True,
            tooltip="adamw8bit needs the package bitsandbytes and saves little for a LoRA.",
        ),
        io.Combo.Input(
            "precision",
            options=list(get_args(Precision)),
            default="automatic",
            advanced=True,
            tooltip="What the model computes in. automatic: as when drawing, but never float16: bfloat16 "
            "where the device has it, else float32. The LoRA itself is always float32.",
        ),
    ]


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
                *advanced_inputs(),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For both training nodes.")],
        )

    @classmethod
    def execute(
        cls, rank, alpha, batch_size, prior_weight, disentanglement_weight, erasure_weight, similarity_weight,
        denoise_steps, offset_noise, accumulation, schedule, warmup_steps, ema, min_snr, optimizer, precision,
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
                accumulation=accumulation,
                schedule=schedule,
                warmup_steps=warmup_steps,
                ema=ema,
                min_snr=min_snr,
                optimizer=optimizer,
                precision=precision,
            )
        )
