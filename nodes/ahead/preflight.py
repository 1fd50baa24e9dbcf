"""What a graph asks of its trainings is looked at before its first drawing, as far as it can be told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io

from ...domaingallery_core.errors import DomainGalleryError, InputError
from ...domaingallery_core.files.formats import FORMATS
from ...domaingallery_core.run.optimizers import check_package
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.run.trainer import check_similarity
from ...domaingallery_core.trainables.kinds import KINDS
from ..checks import check_value
from ..files.saving import checked_name, checked_word
from ..host.far import far_rate
from ..presets import LEFT_OPEN
from ..sockets import TrainingOptions
from ..train.baseline import SOCKETS, fields, plan_of, trained_by
from ..train.data import check_parts, check_subject, checked_category, with_prompts
from ..train.run_options import DomainGalleryRunOptions
from .foreseen import Foresight, at
from .prompt_graph import UNKNOWN, GraphNode, PromptGraph

log = logging.getLogger("domaingallery")

#: The nodes that train, and what they train by.
METHOD_OF = {
    "DomainGalleryErase": "erasure",
    "DomainGalleryTrain": "domaingallery",
    "DomainGalleryPersonalize": "personalization",
    "DomainGallerySubject": "dreambooth_lora",
}
#: The nodes that save under a name, and what checks it.
SAVING = {"DomainGallerySaveLora": checked_name, "DomainGallerySaveEmbedding": checked_word}
#: The node that trains by a method of its choice.
BASELINE = "DomainGalleryBaseline"
#: What stands for numbers of a training that are not known yet, or left open: anything goes with them.
STEPS, RATE, WEIGHT = 100_000, 1e-4, 1.0


def check_ahead(node: type[io.ComfyNode], given: dict[str, Any]) -> None:
    """Look at the trainings after a node that runs, and at the node itself.

    What only running the graph tells is left to its nodes.

    Args:
        given: the inputs of the node that runs.

    Raises:
        InputError: one cannot work; the message begins with the node where the trouble is.
    """
    hidden = node.hidden
    if hidden is None or not hidden.prompt or hidden.unique_id not in hidden.prompt:
        return
    try:
        graph = PromptGraph(hidden.prompt, running_outputs(hidden.prompt))
        check_graph(graph, hidden.unique_id)
        if isinstance(model := given.get("model"), ModelPatcher):
            warn_of_rates(Foresight(graph, hidden.unique_id), model)
    except DomainGalleryError:
        raise
    except Exception:  # a graph that is not understood must run as if nobody had looked at it
        log.debug("The graph is not understood.", exc_info=True)


def running_outputs(prompt: dict[str, Any]) -> list[str] | None:
    """Return the output nodes of a prompt that the host runs now; None where that cannot be told."""
    from server import PromptServer  # a server exists only where the host runs as one

    server = getattr(PromptServer, "instance", None)
    running = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else []
    found = [item[4] for item in running if item[2].keys() == prompt.keys()]
    return list(found[0]) if len(found) == 1 else None


def check_graph(graph: PromptGraph, here: str) -> None:
    """Check every training and every saving after a node.

    Raises:
        InputError: one cannot work.
    """
    foresight = Foresight(graph, here)
    later = graph.later(here)
    for node in later:
        if node.kind in METHOD_OF or node.kind == BASELINE:
            _check_training(foresight, node)
    for node in later:
        name = graph.value(node, "name", UNKNOWN)
        if node.kind in SAVING and isinstance(name, str):
            with at(node, here):
                SAVING[node.kind](name)
        if node.kind == "DomainGallerySaveLora":
            _check_format(foresight, node)


def warn_of_rates(foresight: Foresight, model: ModelPatcher) -> None:
    """Warn of learning rates, in trainings of a MODEL after a node that has it, far from what suits it."""
    graph, here = foresight.graph, foresight.here
    root = graph.root(graph.nodes[here], "model")
    for node in graph.later(here):
        if node.id == here or node.kind not in METHOD_OF or graph.root(node, "model") != root:
            continue  # a node that trains warns of its own when it begins
        rate, options = graph.value(node, "learning_rate", LEFT_OPEN), foresight.options(node)
        if rate == LEFT_OPEN or not isinstance(rate, int | float) or options is None:
            continue
        if far := far_rate(model, METHOD_OF[node.kind], rate, options.values["optimizer"]):
            log.warning("%s: %s", node, far)


def _check_format(foresight: Foresight, node: GraphNode) -> None:
    """Raise InputError where the file of a training cannot be written in the format that is chosen."""
    key_format, linked = foresight.graph.value(node, "key_format"), foresight.graph.source(node, "lora")
    if isinstance(key_format, str) and key_format in FORMATS and linked and linked[0].kind in METHOD_OF:
        options = foresight.options(linked[0])
        if options is not None:
            with at(node, foresight.here):
                FORMATS[key_format].check_kind(options.adapter().kind)


def _check_training(foresight: Foresight, node: GraphNode) -> None:
    _check_run_options(foresight, node)
    options = foresight.options(node)
    _check_erased(foresight, node, options)
    plan = None
    if options is not None:
        with at(node, foresight.here):
            plan = (_chosen_plan if node.kind == BASELINE else _plan)(foresight, node, options)
            if plan is not None:
                check_package(plan.optimizer.optimizer)
    _check_data(foresight, node, plan)


def _check_run_options(foresight: Foresight, node: GraphNode) -> None:
    linked = foresight.graph.source(node, "run_options")
    if linked is not None and linked[0].kind == "DomainGalleryRunOptions":
        values = foresight.graph.values(linked[0], DomainGalleryRunOptions.define_schema())
        if values is not None:
            with at(linked[0], foresight.here):
                DomainGalleryRunOptions.execute(**values)


def _check_erased(foresight: Foresight, node: GraphNode, options: TrainingOptions | None) -> None:
    """Raise InputError where a training cannot go on with the LoRA of the first stage."""
    erased = foresight.erased(node)
    if erased is None or options is None:
        return
    with at(node, foresight.here):
        before, now = erased.adapter(), options.adapter()
        if before.kind != now.kind:
            expected, got = KINDS[now.kind].title, KINDS[before.kind].title
            raise InputError(
                f"Expected a {expected} to go on with, got a {got}. "
                f"Choose {before.kind!r} in Domain Training Options."
            )
        if now.kind in ("lora", "dora"):  # which go on at a higher rank, and at any scale
            if now.rank < before.rank:
                raise InputError(
                    f"Expected a rank of at least {before.rank}, that of the LoRA of the first stage, got "
                    f"{now.rank}. Raise the rank in Domain Training Options, or connect none to this node."
                )
            return
        # The shapes of a LoKr do not always tell its rank.
        same = (before.rank, before.alpha) == (now.rank, now.alpha)
        if now.kind != "lokr" and not same:
            raise InputError(
                f"Expected an adapter with rank {now.rank} and alpha {now.alpha:g}, got one of rank "
                f"{before.rank} and alpha {before.alpha:g} from the first stage. Set the same in both "
                "Domain Training Options, or connect none to this node."
            )


def _chosen_plan(foresight: Foresight, node: GraphNode, options: TrainingOptions) -> TrainingPlan | None:
    """Return the plan of a training by a chosen method; None where too little is known."""
    graph, prompts = foresight.graph, foresight.prompts(node, "prompts")
    key = graph.value(node, "method", UNKNOWN)
    option = next((option for option in fields() if option.key == key), None)
    if option is None or prompts is None:
        return None
    chosen = {"method": key}
    for part in option.inputs:
        if part.id not in SOCKETS:
            value = graph.value(node, f"method.{part.id}", part.default)
            chosen[part.id] = part.default if value is UNKNOWN else value
            check_value(part, chosen[part.id])
    seed = graph.value(node, "seed", 0)
    plan = plan_of(chosen, seed if isinstance(seed, int) else 0, prompts, options)
    if plan.tokens is not None and graph.source(node, "method.clip") is None:
        trained_by(plan, prompts, None)
    return plan


def _plan(foresight: Foresight, node: GraphNode, options: TrainingOptions) -> TrainingPlan:
    """Return the plan of a training, with something that works in place of what is not known."""

    def number(name: str, otherwise: float) -> Any:
        value = foresight.graph.value(node, name, otherwise)
        return otherwise if value is UNKNOWN else value

    def length(name: str, otherwise: float) -> Any:
        return number(name, otherwise) or otherwise

    method = METHOD_OF[node.kind]
    own = {"subject": number("subject_weight", WEIGHT)} if method == "personalization" else {}
    given = length("steps", STEPS), length("learning_rate", RATE), number("seed", 0)
    return options.plan(method, *given, **own)


def _check_data(foresight: Foresight, node: GraphNode, plan: TrainingPlan | None) -> None:
    """Raise InputError where a training lacks images or prompts, as the node itself would."""
    prompts, dataset = foresight.prompts(node, "prompts"), foresight.dataset(node, "dataset")
    subject_prompts = foresight.prompts(node, "subject_prompts")
    subject = foresight.dataset(node, "subject_dataset")
    if dataset is None:
        return
    with at(node, foresight.here):
        domain: Sequence[Any] = [(prompts, part) for part in dataset.parts]
        if prompts is not None:
            domain = with_prompts(prompts, dataset)  # type: ignore[arg-type]
        if prompts is not None and subject_prompts is not None:
            apart = foresight.graph.source(node, "subject_dataset") is not None
            if node.kind == "DomainGalleryErase" and (subject is not None or not apart):
                own = checked_category(subject_prompts, subject, prompts, dataset)  # type: ignore[arg-type]
                with_prompts(subject_prompts, own)
            elif node.kind != "DomainGalleryErase" and subject is not None:
                check_subject(prompts, subject_prompts, subject)  # type: ignore[arg-type]
        if plan is not None:
            check_parts(domain, plan)
            check_similarity([part.source for part in dataset.parts], plan)
