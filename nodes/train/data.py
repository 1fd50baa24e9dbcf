"""From datasets and prompts of the graph to what the core trains on, for one MODEL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...domaingallery_core.data.datasets import Dataset, Examples
from ...domaingallery_core.errors import InputError, shown
from ...domaingallery_core.model.denoiser import Conditions
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.run.trainer import reads
from ..host.model import HostDenoiser, training_latents
from ..sockets import DomainPrompts, LatentDataset

Pair = tuple[DomainPrompts, LatentDataset]


def with_prompts(prompts: DomainPrompts, dataset: LatentDataset) -> list[Pair]:
    """Return the parts of a dataset, each with the prompts of its category.

    Raises:
        InputError: the dataset was made for other categories.
    """
    words = {part.category: part for part in prompts.parts()}
    made_for = list(dict.fromkeys(part.category for part in dataset.parts()))
    if made_for == [None]:
        if len(words) > 1:
            raise InputError(
                f"Expected a dataset of the categories {', '.join(words)}, got one without categories. "
                "Connect the same Domain Prompts to Source Images and Dataset."
            )
        return [(prompts, part) for part in dataset.parts()]
    if made_for != list(words):
        raise InputError(
            f"Expected a dataset of the categories {', '.join(words)}, got one of "
            f"{', '.join(map(str, made_for))}. Connect the same Domain Prompts to Dataset and to this node."
        )
    return [(words[str(part.category)], part) for part in dataset.parts()]


def check_parts(domain: Sequence[Pair], plan: TrainingPlan) -> None:
    """Raise InputError unless every part of a domain has the images that a plan reads."""
    if plan.method.reads("target") and any(part.target is None for _, part in domain):
        raise InputError(
            "Expected images of the domain, got a dataset without them. "
            "Connect target_images of the Dataset node."
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
        InputError: there is none of its own and the categories differ.
    """
    if dataset is not None:
        return dataset
    if prompts.more or first.more or prompts.category.casefold() != first.category.casefold():
        raise InputError(
            f"Expected source images of {shown(prompts.category)}, got those of {shown(first.category)} "
            "alone. Connect subject_dataset."
        )
    return shared


def check_subject(
    prompts: DomainPrompts, subject_prompts: DomainPrompts, subject_dataset: LatentDataset
) -> None:
    """Raise InputError unless the subject has a word and images of its own, of one category and size."""
    if subject_prompts.identifier.casefold() == prompts.identifier.casefold():
        raise InputError(
            f"Expected different identifiers for domain and subject, got {shown(prompts.identifier)} for "
            "both. Enter another rare word in the Domain Prompts of the subject."
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


def training_data(
    model: ModelPatcher,
    denoiser: HostDenoiser,
    domain: Sequence[Pair],
    plan: TrainingPlan,
    subject: Pair | None = None,
) -> tuple[Dataset, Conditions]:
    """Return the latents that a plan reads, as the model sees them, and the conditions of each part.

    Raises:
        InputError: latents or prompts come from another family than the model.
    """
    datasets = [core_dataset(model, part) for _, part in domain]
    prompts = [part for part, _ in domain]
    if subject is not None:
        prompts.append(subject[0])
        datasets[0] = replace(datasets[0], subject=core_dataset(model, subject[1]))
    texts = [c for part in prompts for c in (part.target, part.source, part.empty)]

    def conditions(number: int, part: Dataset) -> Conditions:
        # All are encoded together, to one length, and anew for each part, as some families read its size.
        target, source, empty = denoiser.conditions(texts, size_of(part))[3 * number : 3 * number + 3]
        return Conditions(target=target, source=source, empty=empty)

    found = [conditions(number, part) for number, part in enumerate(datasets)]
    spoken = None if subject is None else conditions(len(datasets), datasets[0])
    data = replace(datasets[0], more=tuple(datasets[1:])).restricted(**reads(plan))
    return data, replace(found[0], subject=spoken, more=tuple(found[1:]))


def size_of(dataset: Dataset) -> Tensor:
    """Return latents (N C H W) of a dataset, whose size the conditions of some families hold."""
    examples = dataset.source or dataset.target
    assert examples is not None
    return examples.latents


def core_dataset(model: ModelPatcher, dataset: LatentDataset) -> Dataset:
    """Return one part of a dataset as the model sees it, on the CPU; the trainer takes a batch at a time."""

    def scaled(examples: Examples | None) -> Examples | None:
        if examples is None:
            return None
        latents = training_latents(model, examples.latents)
        deviation = examples.deviation
        if deviation is not None:
            deviation = deviation.clone() * deviation_scale(model, latents.shape[1])
        masks = None if examples.masks is None else examples.masks.clone()
        return Examples(latents, deviation, masks, examples.variants)

    return Dataset(
        target=scaled(dataset.target), source=scaled(dataset.source), validation=scaled(dataset.validation)
    )


def deviation_scale(model: ModelPatcher, channels: int) -> Tensor:
    """Return what a deviation of a latent is multiplied by in the model's eyes (1 C 1 1).

    What the model sees is linear in each latent, with an offset in some families.
    """
    ends = [torch.full((1, channels, 1, 1), end, dtype=torch.float64) for end in (0.0, 1.0)]
    zero, one = map(model.model.process_latent_in, ends)
    return (one - zero).float()
