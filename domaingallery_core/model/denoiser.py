"""The one view of a model that the core has: `(x, sigma, condition) -> x0`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .process import Process


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Hold what a model is conditioned on: named tensors with a leading batch dimension of 1 or B.

    `context` is B L D. Families may add others, such as the pooled `y` (B A) of SDXL.

    Attributes:
        constants: what a family reads besides, the same for all rows, such as a number of tokens.
    """

    tensors: dict[str, Tensor]
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {tensor.shape[0] for tensor in self.tensors.values()} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"Expected tensors with one batch size (or 1) in a condition, got {self.shapes()!r}."
            )

    def __len__(self) -> int:
        return max((tensor.shape[0] for tensor in self.tensors.values()), default=1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, for messages."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def expand(self, n: int) -> Condition:
        """Return the condition with `n` rows; rows are repeated as views, without a copy."""
        if len(self) not in (1, n):
            raise ValueError(f"Expected a condition with 1 or {n} rows, got {self.shapes()!r}.")
        rows = {name: tensor.expand(n, *tensor.shape[1:]) for name, tensor in self.tensors.items()}
        return Condition(rows, self.constants)

    def fits(self, other: Condition) -> bool:
        """Tell whether rows of both may be in one batch: same names and shapes, equal constants."""
        return (
            self.tensors.keys() == other.tensors.keys()
            and self.constants.keys() == other.constants.keys()
            and all(
                tensor.shape[1:] == other.tensors[name].shape[1:] for name, tensor in self.tensors.items()
            )
            and all(_equal(value, other.constants[name]) for name, value in self.constants.items())
        )

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Join conditions row by row. Nothing is padded, as few families read padding like nothing.

        Raises:
            ValueError: one does not fit the first.
        """
        first = conditions[0]
        for other in conditions[1:]:
            if not first.fits(other):
                raise ValueError(
                    f"Expected conditions that fit, got {first.shapes()!r} and {other.shapes()!r}."
                )
        rows = {name: torch.cat([c.tensors[name] for c in conditions]) for name in first}
        return Condition(rows, first.constants)

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with each tensor changed."""
        return Condition({name: change(tensor) for name, tensor in self.tensors.items()}, self.constants)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Return the condition on a device and, for its floating point tensors, in a dtype."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))


def _equal(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


#: A prompt that does not change, or one that learns, which is made anew whenever it is looked at.
Prompt = Condition | Callable[[], Condition]


def resolved(prompt: Prompt) -> Condition:
    """Return a prompt as it is now."""
    return prompt() if callable(prompt) else prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditions:
    """Hold the prompts of images that belong together.

    Attributes:
        target: "a [V] [N]", of a subject "a [W] [N]".
        source: "a [N]"; None where no term needs source images.
        empty: ""; needed only for guidance inside the recurrent denoising.
        captions: if there are any, each image of a step has one of them, drawn anew, in place of `target`.
    """

    target: Prompt
    source: Prompt | None = None
    empty: Prompt | None = None
    captions: tuple[Prompt, ...] = ()

    def map(self, change: Callable[[Condition], Condition]) -> Conditions:
        """Return the conditions with each one changed, now or when it is looked at."""

        def changed(prompt: Prompt) -> Prompt:
            return (lambda: change(prompt())) if callable(prompt) else change(prompt)

        source, empty = (None if p is None else changed(p) for p in (self.source, self.empty))
        captions = tuple(map(changed, self.captions))
        return Conditions(target=changed(self.target), source=source, empty=empty, captions=captions)


@runtime_checkable
class Denoiser(Protocol):
    """Predict clean images from noisy ones, for any model family."""

    process: Process

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return x0 (B C H W) for x (B C H W, in sigma space) at sigma (B)."""
        ...

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        """Return the skip tensors of the down path, each B C H W (paper 4.2)."""
        ...


def denoise_together(denoiser: Denoiser, parts: Sequence[tuple[Tensor, Tensor, Condition]]) -> list[Tensor]:
    """Return x0 (B C H W) for each part: x (B C H W) at sigma (B) under a condition (1 or B rows).

    Parts whose conditions fit are evaluated in one batch, the others apart: prompts of other lengths, say.
    """
    groups: list[list[int]] = []
    for i, (_, _, condition) in enumerate(parts):
        group = next((group for group in groups if parts[group[0]][2].fits(condition)), None)
        groups.append([i]) if group is None else group.append(i)
    found: dict[int, Tensor] = {}
    for group in groups:
        members = [parts[i] for i in group]
        x, sigma = torch.cat([x for x, _, _ in members]), torch.cat([sigma for _, sigma, _ in members])
        condition = Condition.cat([condition.expand(len(x)) for x, _, condition in members])
        x0 = denoiser(x, sigma, condition).split([len(x) for x, _, _ in members])
        found |= dict(zip(group, x0, strict=True))
    return [found[i] for i in range(len(parts))]
