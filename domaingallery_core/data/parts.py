"""What a training reads: parts, images with the prompts for them; and the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..errors import InputError, shown
from ..model.denoiser import Conditions
from ..settings import Settings, setting
from .examples import Examples

#: What a part is to a method: of the domain (a category of it, or a size), or a subject.
Role = Literal["domain", "subject"]
ROLES: tuple[Role, ...] = get_args(Role)
#: Of which kind images of a part are.
Images = Literal["target", "source"]


class Decoder(Protocol):
    """Turn latents as a model sees them into pictures, with a gradient."""

    def __call__(self, latents: Tensor, *, rescaled: bool = True) -> Tensor:
        """Return pictures (B 3 H W in about -1..1) of latents (B C H W).

        Args:
            rescaled: whether latents are scaled back first; otherwise the VAE reads them as they are.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(Settings):
    """Say how images are read."""

    batch_size: int = setting(
        4, "Images of each kind in a step. The similarity term needs at least 3.", least=1, most=64
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Hold images that belong together, all of one size, and the prompts for them.

    Attributes:
        name: for messages and identities; a run has no two of one name.
        target, source: either may be absent.
        validation: target images that are held out of the training.
        decoder: turns latents into pictures, for a method that looks at these.
    """

    name: str
    prompts: Conditions
    role: Role = "domain"
    target: Examples | None = None
    source: Examples | None = None
    validation: Examples | None = None
    decoder: Decoder | None = None

    def __post_init__(self) -> None:
        if self.target is None and self.source is None:
            raise InputError("Expected target or source images, got neither. Connect images.")
        _check_sizes({"target": self.target, "source": self.source, "validation": self.validation})

    def __len__(self) -> int:
        return max(len(examples) for examples in (self.target, self.source) if examples is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> Part:
        """Return the part with each tensor of its images changed."""
        kinds = {name: getattr(self, name) for name in ("target", "source", "validation")}
        return replace(self, **{n: None if e is None else e.map(change) for n, e in kinds.items()})


def read_parts(parts: Sequence[Part], reads: Callable[[Images, Role], bool]) -> list[Part]:
    """Return the parts that a run reads, with those of their images that it reads.

    Raises:
        InputError: some are absent, of another size than others, or of the same name.
    """
    found = []
    for role in ROLES:
        target, source = reads("target", role), reads("source", role)
        if not (target or source):
            continue
        own = [part for part in parts if part.role == role]
        if not own:
            raise InputError(
                f"Expected images of a {role} for this training, got none. Connect images of a {role}."
            )
        for part in own:
            for kind, needed in (("target", target), ("source", source)):
                if needed and getattr(part, kind) is None:
                    raise InputError(
                        f"Expected {kind} images of {shown(part.name)} for this training, got none. "
                        f"Connect {kind} images."
                    )
            found.append(
                replace(
                    part,
                    target=part.target if target else None,
                    source=part.source if source else None,
                    validation=part.validation if target else None,
                )
            )
    _check_together(found)
    return found


def _check_together(parts: Sequence[Part]) -> None:
    """Raise InputError unless names differ and what is read together is of one size."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Expected parts of different names, got {shown(twice)} twice. Take another word.")
    for part in parts:
        for other in parts:
            if part.role != other.role:
                _check_sizes({each.role: each.target or each.source for each in (part, other)})


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
    """Hold the latents of a part in one step, each B C H W or None, and its prompts.

    Attributes:
        mask: B 1 H W, of the target images.
    """

    part: Part
    target: Tensor | None = None
    source: Tensor | None = None
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its latents on a device."""
        tensors = (None if t is None else t.to(device) for t in (self.target, self.source, self.mask))
        return Batch(self.part, *tensors)


def batches(
    parts: Sequence[Part], batch_size: int, generator: torch.Generator
) -> Iterator[dict[Role, Batch]]:
    """Yield for ever what a step reads: a batch for each role, of one part each.

    Similarities need images that are related. So the parts of a role (categories or sizes of the domain) take
    turns, by the number of their target images, or evenly where there are none.
    """
    own = {role: [part for part in parts if part.role == role] for role in ROLES}
    streams = {role: _in_turns(some, batch_size, generator) for role, some in own.items() if some}
    while True:
        yield {role: next(stream) for role, stream in streams.items()}


def _in_turns(parts: Sequence[Part], batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches of parts that take turns."""
    readers = [_read(part, batch_size, generator) for part in parts]
    for turn in turns([1 if part.target is None else len(part.target) for part in parts]):
        yield next(readers[turn])


def turns(shares: Sequence[int]) -> Iterator[int]:
    """Yield numbers of parts for ever, each as often as its share says and as evenly as can be."""
    taken = [0] * len(shares)
    while True:
        step = sum(taken) + 1
        part = max(range(len(shares)), key=lambda i: shares[i] * step - taken[i] * sum(shares))
        taken[part] += 1
        yield part


def _read(part: Part, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches of one part in the order of the released code.

    Indices up to the length of its longer kind are shuffled without replacement; each kind is read at the
    index modulo its length. A batch that an epoch cannot fill goes on in the next; none is smaller.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(len(part), generator=generator)])
        index, waiting = waiting[:batch_size], waiting[batch_size:]
        target, mask = part.target.read(index, generator) if part.target else (None, None)
        source, _ = part.source.read(index, generator) if part.source else (None, None)
        yield Batch(part, target, source, mask)
