"""Latents of target and source images, and the order in which a training reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..settings import Settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Settings):
    """Say how images are read."""

    batch_size: int = setting(
        4, "Images of each kind in a step. The similarity term needs at least 3.", least=1, most=64
    )


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Hold the latents of images of one kind, encoded once.

    Attributes:
        latents: R C H W; the rows of an image, its crops and flips, follow each other.
        deviation: R C H W, of the VAE's posterior, of which `latents` is the mean; None reads the mean.
        masks: R 1 H W in 0..1, how much each place counts in the target term; None counts all alike.
        variants: rows of each image; which of them is read is drawn anew each time.
    """

    latents: Tensor
    deviation: Tensor | None = None
    masks: Tensor | None = None
    variants: int = 1

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.latents.shape[0] == 0:
            raise InputError(
                "Expected latents of at least one image (N C H W), "
                f"got the shape {tuple(self.latents.shape)!r}. Connect images."
            )
        if not bool(torch.isfinite(self.latents).all()):
            raise InputError("Expected finite latents, got NaN or infinity. Check the images and the VAE.")
        rows, _, height, width = self.latents.shape
        if self.variants < 1 or rows % self.variants:
            raise ValueError(f"Expected {self.variants} rows for each image, got {rows} rows.")
        if self.deviation is not None and self.deviation.shape != self.latents.shape:
            raise ValueError(f"Expected deviations like the latents, got {tuple(self.deviation.shape)!r}.")
        if self.masks is not None and self.masks.shape != (rows, 1, height, width):
            raise ValueError(f"Expected masks (R 1 H W) like the latents, got {tuple(self.masks.shape)!r}.")

    def __len__(self) -> int:
        return self.latents.shape[0] // self.variants

    def map(self, change: Callable[[Tensor], Tensor]) -> Examples:
        """Return the examples with each tensor changed."""
        tensors = (None if t is None else change(t) for t in (self.latents, self.deviation, self.masks))
        return Examples(*tensors, variants=self.variants)  # type: ignore[arg-type]

    def read(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return latents (B C H W) and masks (B 1 H W) of images at `index` modulo their number.

        The generator is drawn from only where there are variants or deviations.
        """
        rows = index % len(self)
        if self.variants > 1:
            rows = rows * self.variants + torch.randint(self.variants, rows.shape, generator=generator)
        rows = rows.to(self.latents.device)
        latents = self.latents[rows]
        if self.deviation is not None:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + self.deviation[rows] * noise
        return latents, None if self.masks is None else self.masks[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Hold the target and source images of one domain; either may be absent.

    Attributes:
        subject: images of a subject (`target`) and of its category (`source`), for personalization (Eq. 7).
        validation: target images that are held out of the training.
        more: the same for further categories, or sizes, of the domain; a batch is of one of them.
    """

    target: Examples | None = None
    source: Examples | None = None
    subject: Dataset | None = None
    validation: Examples | None = None
    more: tuple[Dataset, ...] = ()

    def __post_init__(self) -> None:
        if self.target is None and self.source is None:
            raise InputError("Expected target or source images, got neither. Connect images.")
        _check_sizes({"target": self.target, "source": self.source, "validation": self.validation})
        if self.subject is not None:
            for part in self.parts():
                first = part.target or part.source
                _check_sizes(
                    {"domain": first, "subject": self.subject.target, "category": self.subject.source}
                )

    def __len__(self) -> int:
        return max(len(examples) for examples in (self.target, self.source) if examples is not None)

    def parts(self) -> tuple[Dataset, ...]:
        """Return one dataset for each category or size of the domain."""
        return (self, *self.more)

    def map(self, change: Callable[[Tensor], Tensor]) -> Dataset:
        """Return the dataset with each tensor changed."""
        return Dataset(
            *(None if part is None else part.map(change) for part in (self.target, self.source)),
            subject=None if self.subject is None else self.subject.map(change),
            validation=None if self.validation is None else self.validation.map(change),
            more=tuple(part.map(change) for part in self.more),
        )

    def restricted(
        self, *, target: bool, source: bool, subject: bool = False, subject_source: bool = False
    ) -> Dataset:
        """Return the parts that a run reads.

        Raises:
            InputError: a part is needed and absent.
        """
        for name, needed, part in (
            ("target", target, self.target),
            ("source", source, self.source),
            ("subject", subject or subject_source, self.subject),
        ):
            if needed and part is None:
                raise InputError(
                    f"Expected {name} images for this training, got none. Connect {name} images."
                )
        found = None
        if (subject or subject_source) and self.subject is not None:
            found = self.subject.restricted(target=subject, source=subject_source)
        return Dataset(
            target=self.target if target else None,
            source=self.source if source else None,
            subject=found,
            validation=self.validation if target else None,
            more=tuple(part.restricted(target=target, source=source) for part in self.more),
        )


def _check_sizes(examples: dict[str, Examples | None]) -> None:
    """Raise InputError unless all examples have latents of one size."""
    shapes = {name: tuple(e.latents.shape[1:]) for name, e in examples.items() if e is not None}
    if len(set(shapes.values())) > 1:
        found = " and ".join(f"{shape!r} ({name})" for name, shape in shapes.items())
        raise InputError(
            f"Expected {' and '.join(shapes)} latents of one size, got {found}. "
            "Encode all at the same image size with the same VAE."
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Hold the latents of one step, each B C H W or None.

    Attributes:
        mask: B 1 H W, of the target images.
        subject: the images of a subject and of its category.
        part: which of `Dataset.parts` the images are from.
    """

    target: Tensor | None
    source: Tensor | None
    mask: Tensor | None = None
    subject: Batch | None = None
    part: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        target, source, mask = (
            None if t is None else t.to(device) for t in (self.target, self.source, self.mask)
        )
        subject = None if self.subject is None else self.subject.to(device)
        return Batch(target, source, mask, subject, self.part)


def batches(dataset: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches for ever in the order of the released code.

    Indices up to the length of the longer part are shuffled without replacement; each part is read at the
    index modulo its length. A batch that an epoch cannot fill goes on in the next; none is smaller.

    Each batch is of one category (or size), as similarities need images that are related. They take turns by
    the number of their target images, or evenly where there are none.
    """
    parts = dataset.parts()
    readers = [_read(part, batch_size, generator) for part in parts]
    subject = None if dataset.subject is None else _read(dataset.subject, batch_size, generator)
    shares = [1 if part.target is None else len(part.target) for part in parts]
    for part in turns(shares):
        batch = next(readers[part])
        yield replace(batch, part=part, subject=None if subject is None else next(subject))


def turns(shares: Sequence[int]) -> Iterator[int]:
    """Yield numbers of parts for ever, each as often as its share says and as evenly as can be."""
    taken = [0] * len(shares)
    while True:
        step = sum(taken) + 1
        part = max(range(len(shares)), key=lambda i: shares[i] * step - taken[i] * sum(shares))
        taken[part] += 1
        yield part


def _read(dataset: Dataset, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches of one category."""
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(dataset), generator=generator)])
        index, waiting = waiting[:batch_size], waiting[batch_size:]
        target, mask = dataset.target.read(index, generator) if dataset.target else (None, None)
        source, _ = dataset.source.read(index, generator) if dataset.source else (None, None)
        yield Batch(target, source, mask)
