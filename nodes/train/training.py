"""Erase Prior Attributes and Train Domain LoRA."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.data.parts import Role
from ...domaingallery_core.errors import AdapterError, shown
from ...domaingallery_core.files.formats.comfyui import TEXT
from ...domaingallery_core.files.lora import core_names
from ...domaingallery_core.fingerprints import tensors_hash
from ...domaingallery_core.methods import METHODS
from ...domaingallery_core.pictures.curves import VALIDATION
from ...domaingallery_core.run.identity import run_identity
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.run.trainer import TrainingResult, train
from ...domaingallery_core.trainables.adapters import target_modules
from ...domaingallery_core.trainables.kinds import describe
from ...domaingallery_core.trainables.trainable import Trainable
from ..files.kept import keep_within_bounds
from ..host.closing import kept_at_exit
from ..host.families import Family, family_of
from ..host.families.names import key_map
from ..host.far import far_rate
from ..host.few_steps import few_steps
from ..host.identity import model_identity
from ..host.model import HostDenoiser, training
from ..host.network.held import check_held
from ..host.network.memory import gradient_checkpointing, precision
from ..host.network.offloading import bring
from ..host.pixels.decoding import HostDecoder, vae_patcher
from ..host.progress import duration, node_id, warned
from ..host.stopping import stoppable
from ..host.text_encoder import text_names
from ..node import Node
from ..sockets import (
    CATEGORY,
    UNWATCHED,
    Dataset,
    DomainPrompts,
    LatentDataset,
    Prompts,
    RunOptions,
    TrainedLora,
    TrainingOptions,
)
from .data import Pair, check_parts, checked_category, training_parts, with_prompts
from .fitting import Fit
from .inputs import erased_input, option_inputs, training_inputs, training_outputs
from .length import plan_on
from .live import Live, attempt, plot_image, preview_columns, preview_image
from .metadata import metadata, of_data, of_model, thumbnail
from .run_options import checkpoints_of, monitor_of
from .text_encoder import learning_layers, text_encoder_input, trained_adapter
from .trained import Trained, TrainedAdapter

log = logging.getLogger("domaingallery")

LEFT_OUT = (
    "Of the LoRA to begin with, %d names are of no layer that learns here and are left out, such as %s."
)
MISSING = "The LoRA to begin with has nothing for %d layers that learn here, such as %s; these begin anew."


def run(
    model: ModelPatcher,
    prompts: DomainPrompts,
    dataset: LatentDataset,
    plan: TrainingPlan,
    node: str | None,
    start: Mapping[str, Tensor] | None = None,
    options: RunOptions | None = None,
    *,
    trained: Trained | None = None,
    also: tuple[DomainPrompts, LatentDataset] | None = None,
    subject: tuple[DomainPrompts, LatentDataset] | None = None,
) -> io.NodeOutput:
    """Train a LoRA on a MODEL by a plan; return what a training node gives, also to a client.

    Args:
        trained: what learns, if that is no adapter that begins with `start`.
        also: further prompts whose identifier is erased with the domain's, on their own dataset.
        subject: what joint personalization learns beside the domain.
    """
    domain = with_prompts(prompts, dataset)
    if also is not None:
        domain += with_prompts(*also)
    check_parts(domain, plan)
    pairs: dict[Role, list[Pair]] = {"domain": domain, "subject": with_prompts(*subject) if subject else []}
    options, family, trained = options or UNWATCHED, family_of(model), trained or TrainedAdapter(start)
    beside = [*trained.beside()]
    if plan.method.method.decodes:
        beside.append(vae_patcher(dataset.vae))
    names, loads = family.names(model.model) | trained.names(), key_map(model.model) | trained.loads()
    live = Live(node, model, plan.optimizer.steps)
    check_held(model)
    if text := few_steps(model):
        log.warning("%s", text)
    plan = suited(plan, family)
    if far := far_rate(model, plan.method.name, plan.optimizer.learning_rate, plan.optimizer.optimizer):
        log.warning("%s", far)
    fit = Fit(model, plan, options, [pair for some in pairs.values() for pair in some], live)
    live.progress.say("looking at the model")
    base = model_identity(model)
    live.progress.say("loading the model")
    with kept_at_exit(), ExitStack() as claim:
        try:
            with fit.advised(), ExitStack() as stack:
                stack.enter_context(training(model, *beside, home=fit.home))
                computing = stack.enter_context(precision(model, plan.precision))
                denoiser = HostDenoiser(model)
                parts = training_parts(model, denoiser, pairs, plan)
                if plan.method.method.decodes:
                    decoder = HostDecoder(model, dataset.vae)
                    parts = [replace(part, decoder=decoder) for part in parts]
                    base |= {"VAE weights": tensors_hash(dataset.vae.first_stage_model.state_dict())}
                blocks = stack.enter_context(
                    gradient_checkpointing(model, options.gradient_checkpointing, fit.home)
                )
                trainable, parts = trained.put(stack, denoiser, parts, plan)
                if fit.home:
                    bring(trainable, model.load_device)
                if trained.said:
                    live.progress.say(trained.said)
                identity = run_identity(trainable, parts, plan, base) | {"computes in": str(computing.dtype)}
                checkpoints = checkpoints_of(options, prompts.first.target_text, plan.method.name, identity)
                claim.enter_context(checkpoints.claimed())
                keep_within_bounds()  # which leaves what is claimed
                live.checkpoints = checkpoints
                result = train(
                    denoiser, trainable, parts, plan, live.show, checkpoints=checkpoints,
                    monitor=monitor_of(options), enough=stack.enter_context(stoppable(node)),
                    fitting=fit.fitting(blocks, computing),
                )  # fmt: skip
                tensors = trained.result(trainable, result.state_dict)
                cost = report(plan, result, trainable, tensors)
            columns = preview_columns(model, dataset.vae, result)
            said = metadata(prompts, plan, identity, result.steps, subject and subject[0])
            said |= of_model(model) | of_data(model, pairs, plan) | trained.metadata(plan)
            small = attempt("a small picture for the file", lambda: thumbnail(columns))
            lora = TrainedLora(
                tensors, metadata=said | (small or {}), names=names, loads=loads, state=result.state_dict
            )
            pictures = plot_image(result), preview_image(columns)
            live.told(summary(result, plan), done=result.steps == plan.optimizer.steps)
            output = io.NodeOutput(lora, loss_map(result), *pictures, cost, ui=interface(result, plan))
            # What was trained stays on the disk until nothing is left that could fail.
            if result.steps == plan.optimizer.steps:
                attempt("room on the disk, without the checkpoints", checkpoints.finish)
            attempt("the folder of the run free for others", claim.close)
        except BaseException:
            live.stopped()
            raise
    return output


def suited(plan: TrainingPlan, family: Family) -> TrainingPlan:
    """Return a plan without what a family does not offer, and warn of that."""
    if family.compares or not plan.method.uses("similarity"):
        return plan
    log.warning("The similarity term is switched off: this kind of model has no features to compare.")
    weights = {**plan.method.weights, "similarity": 0.0}
    return replace(plan, method=replace(plan.method, weights=weights))


def loss_map(result: TrainingResult) -> dict[str, list[float]]:
    """Return a LOSS_MAP: "loss" for the host's plot, each term by its name, and the validation loss."""
    terms = dict(result.losses)
    found = {"loss": terms.pop("total", []), **terms}
    return found | {VALIDATION: list(result.validation.values())} if result.validation else found


def interface(result: TrainingResult, plan: TrainingPlan) -> dict[str, list]:
    """Return what a client receives: the terms over the steps, seconds, and a line of text."""
    losses = {name: [float(f"{value:.5g}") for value in values] for name, values in result.losses.items()}
    text = "\n".join([summary(result, plan), *warned()])
    found = {"losses": [losses], "seconds": [round(result.seconds, 3)], "text": [text]}
    return found | {VALIDATION: [result.validation]} if result.validation else found


def summary(result: TrainingResult, plan: TrainingPlan) -> str:
    """Return a line about a training that is done."""
    steps = f"{result.steps} steps"
    if result.steps < plan.optimizer.steps:
        steps = f"stopped after {result.steps} of {plan.optimizer.steps} steps"
    since = f", gone on from step {result.resumed}" if result.resumed else ""
    skipped = f", {result.skipped} of them skipped as not finite" if result.skipped else ""
    last = result.losses["total"][-1]
    return f"{steps}{skipped}{since} in {duration(result.seconds)}, last loss {last:.4f}"


def report(
    plan: TrainingPlan, result: TrainingResult, trainable: Trainable, tensors: Mapping[str, Tensor]
) -> str:
    """Return a line about what a training made and what it cost."""
    method = plan.method.method
    numbers = sum(parameter.numel() for parameter in trainable.named_parameters().values())
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    return (
        f"{method.title or method.name}: {summary(result, plan)}, {numbers:,} numbers learned, {size:.3g} MB"
    )


def starting_weights(
    model: ModelPatcher,
    erased: Mapping[str, Tensor] | None,
    options: TrainingOptions | None,
    clip: Any = None,
) -> tuple[dict[str, Tensor] | None, TrainingOptions]:
    """Return the weights to begin with, if any, and options, of their kind, rank and alpha if none are given.

    What is of other layers than those that learn is left out; the node says so.

    Args:
        clip: the text encoder, if it learns as well; what `erased` has nothing for begins anew.

    Raises:
        AdapterError: it is an adapter of no kind that is known, or of no layer that learns.
        FileError: its names are those of another model.
    """
    if erased is None:
        return None, options or TrainingOptions()
    family, targets = family_of(model), (options or TrainingOptions()).values["targets"]
    names = family.names(model.model)
    weights, left = core_names(erased, names if clip is None else names | text_names(clip))
    learning = [*target_modules(model.model.diffusion_model, targets, family.targets)]
    if any(name.startswith(TEXT) for name in weights):
        learning += learning_layers(clip, targets)
    found, others, missing = of_layers(weights, learning)
    if not found:
        raise AdapterError(
            f"Expected a LoRA with layers that learn here, got one for others, such as {shown(others[0])}. "
            "Set targets in Domain Training Options to them, or use another LoRA."
        )
    for names, text in ((left + others, LEFT_OUT), (missing, MISSING)):
        if names:
            log.warning(text, len(names), ", ".join(map(shown, names[:3])))
    kind, rank, alpha = describe(found)
    return found, options or TrainingOptions(kind=kind, rank=rank, alpha=alpha)


def of_layers(
    weights: Mapping[str, Tensor], layers: Iterable[str]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the weights of some layers, the names of those of others, and the layers that have none."""
    of = {name: module for module in layers for name in weights if name.startswith(f"{module}.")}
    found = {name: weights[name] for name in weights if name in of}
    missing = [module for module in layers if module not in of.values()]
    return found, [name for name in weights if name not in of], missing


class DomainGalleryErase(Node):
    """Run stage 1, prior attribute erasure (paper section 4.1, Eq. 5a)."""

    looks_ahead = True

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
                *training_inputs(METHODS["erasure"]),
                *option_inputs(),
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
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, options=None, run_options=None,
        subject_prompts=None, subject_dataset=None,
    ) -> io.NodeOutput:  # fmt: skip
        plan = plan_on(model, options, "erasure", steps, learning_rate, seed)
        also = None
        if subject_prompts is not None:
            also = subject_prompts, checked_category(subject_prompts, subject_dataset, prompts, dataset)
        return run(model, prompts, dataset, plan, node_id(cls), options=run_options, also=also)


class DomainGalleryTrain(Node):
    """Run stage 2, finetuning on the domain (paper section 4.2, Eq. 5b)."""

    looks_ahead = True

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
                *training_inputs(METHODS["domaingallery"]),
                erased_input("identifier and category"),
                *option_inputs(),
                text_encoder_input(),
            ],
            outputs=training_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, model, prompts, dataset, steps, learning_rate, seed, erased=None, options=None, run_options=None,
        text_encoder=None,
    ) -> io.NodeOutput:  # fmt: skip
        start, options = starting_weights(model, erased, options, text_encoder)
        plan = plan_on(model, options, "domaingallery", steps, learning_rate, seed)
        trained = trained_adapter(text_encoder, prompts, start)
        return run(model, prompts, dataset, plan, node_id(cls), options=run_options, trained=trained)
