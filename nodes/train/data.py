"""From datasets and prompts of the graph to what the core trains on, for one MODEL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfy.model_patcher import ModelPatcher

from ...domaingallery_core.data.examples import Examples
from ...domaingallery_core.data.parts import Part, Role, read_parts
from ...domaingallery_core.errors import InputError, shown
from ...domaingallery_core.model.denoiser import Conditions
from ...domaingallery_core.run.plan import TrainingPlan
from ..host.model import HostDenoiser
from ..host.pixels.latents import deviation_scale, training_latents
from ..sockets import CategoryPrompts, DomainPrompts, LatentDataset, LatentPart

Pair = tuple[CategoryPrompts, LatentPart]
#: The prompts of a part.
KINDS = ("target", "source", "empty")


def with_prompts(prompts: DomainPrompts, dataset: LatentDataset) -> list[Pair]:
    """Return the parts of a dataset, each with the prompts of its category.

    Raises:
        InputError: the dataset was made for other categories.
    """
    words = {part.category: part for part in prompts.categories}
    made_for = list(dict.fromkeys(part.category for part in dataset.parts))
    if made_for == [None]:
        if len(words) > 1:
            raise InputError(
                f"Expected a dataset of the categories {', '.join(words)}, got one without categories. "
                "Connect the same Domain Prompts to Domain Source Images and Domain Dataset."
            )
        return [(prompts.first, part) for part in dataset.parts]
    if made_for != list(words):
        raise InputError(
            f"Expected a dataset of the categories {', '.join(words)}, got one of "
            f"{', '.join(map(str, made_for))}. Connect the same Domain Prompts to Domain Dataset and to this "
            "node."
        )
    return [(words[str(part.category)], part) for part in dataset.parts]


def check_parts(domain: Sequence[Pair], plan: TrainingPlan) -> None:
    """Raise InputError unless every part of a domain has the images that a plan reads."""
    if plan.method.reads("target") and any(part.target is None for _, part in domain):
        raise InputError(
            "Expected images of the domain, got a dataset without them. "
            "Connect target_images of the Domain Dataset node."
        )
    images = sum(len(part.target) for _, part in domain if part.target is not None)
    if plan.method.reads("target") and images < 2:
        raise InputError(
            f"Expected at least 2 images of the domain, got {images}: what is of the domain is what images "
            "share. Add images."
        )


def checked_category(
    prompts: DomainPrompts, dataset: LatentDataset | None, first: DomainPrompts, shared: LatentDataset
) -> LatentDataset:
    """Return the dataset of a second identifier: its own, or the first's where the category is the same.

    Raises:
        InputError: there is none of its own and the categories differ, or the words are those of the first.
    """
    for part in prompts.categories:
        if part.target_text.casefold() in [other.target_text.casefold() for other in first.categories]:
            raise InputError(
                f"Expected other words than those of the first Domain Prompts, got {shown(part.target_text)} "
                "twice. Enter another identifier in the second, or take it out."
            )
    if dataset is not None:
        return dataset
    wanted, known = ([word.casefold() for word in each.words] for each in (prompts, first))
    if len(wanted) > 1 or wanted != known:
        raise InputError(
            f"Expected source images of {shown(prompts.first.category)}, got those of "
            f"{shown(first.first.category)} alone. Connect subject_dataset."
        )
    return shared


def check_subject(
    prompts: DomainPrompts, subject_prompts: DomainPrompts, subject_dataset: LatentDataset
) -> None:
    """Raise InputError unless the subject has a word and images of its own, of one category and size."""
    identifier = prompts.first.identifier
    if subject_prompts.first.identifier.casefold() == identifier.casefold():
        raise InputError(
            f"Expected different identifiers for domain and subject, got {shown(identifier)} for both. "
            "Enter another rare word in the Domain Prompts of the subject."
        )
    if len(subject_prompts.categories) > 1 or len(subject_dataset.parts) > 1:
        raise InputError(
            "Expected a subject of one category, with images of one size, got several. "
            'Name one category, and set fit to "centre crop".'
        )
    (_, images), *_ = with_prompts(subject_prompts, subject_dataset)
    if images.target is None:
        raise InputError(
            "Expected images of the subject, got a dataset without them. "
            "Connect target_images of the Domain Dataset node of the subject."
        )


def training_parts(
    model: ModelPatcher,
    denoiser: HostDenoiser,
    pairs: Mapping[Role, Sequence[Pair]],
    plan: TrainingPlan,
) -> list[Part]:
    """Return what a plan reads, as the model sees it.

    Raises:
        InputError: latents or prompts come from another family than the model.
    """
    given = [(role, *pair) for role, some in pairs.items() for pair in some]
    keys = [(number, kind) for number in range(len(given)) for kind in KINDS]
    texts = [getattr(given[number][1], kind) for number, kind in keys]
    found = []
    for number, (role, prompts, part) in enumerate(given):
        images = {kind: seen_by(model, getattr(part, kind)) for kind in ("target", "source", "validation")}
        like = images["source"] or images["target"]
        assert like is not None
        # All are encoded together, to one length, and anew for each part, as some families read its size.
        encoded = dict(zip(keys, denoiser.conditions(texts, like.latents), strict=True))
        conditions = Conditions(**{kind: encoded[number, kind] for kind in KINDS})
        name = named(prompts, part, given)
        found.append(Part(name=name, role=role, prompts=conditions, **images))
    return read_parts(found, plan.method.reads)


def named(prompts: CategoryPrompts, part: LatentPart, given: Sequence[tuple[Role, *Pair]]) -> str:
    """Return how a part is called: by its words, and its size where there are several of them."""
    words = f"{prompts.identifier} {prompts.category}"
    if sum(other is prompts for _, other, _ in given) == 1:
        return words
    height, width = part.source.latents.shape[-2:]
    return f"{words}, {width} x {height} latents"


def seen_by(model: ModelPatcher, examples: Examples | None) -> Examples | None:
    """Return images as the model sees them, on the CPU; the trainer takes a batch at a time."""
    if examples is None:
        return None
    latents = training_latents(model, examples.latents)
    deviation = examples.deviation
    if deviation is not None:
        deviation = deviation.clone() * deviation_scale(model, latents.shape[1])
    masks = None if examples.masks is None else examples.masks.clone()
    return Examples(latents, deviation, masks, examples.variants)
