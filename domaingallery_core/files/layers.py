"""What files call the layers of a model, and LoRA layers that are several in a file and one in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import FileError, shown
from ..trainables.kinds import number
from ..trainables.kinds.dora import MAGNITUDE, SCALE
from ..trainables.kinds.lora import A, B

#: (first, count) of the outputs of a layer, in some order.
Rows = tuple[tuple[int, int], ...]
#: What there is of one layer, by part, such as "lora_A.weight" or "alpha".
Parts = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """Say where a layer of a file is in a model.

    Attributes:
        module: the layer of the model.
        rows: its outputs that are the layer of the file, in the order of the file; all if there are none.
        outputs: how many outputs the module has.
    """

    module: str
    rows: Rows = ()
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Hold what files of each format call the layers of one model.

    Attributes:
        kohya: module -> its name.
        diffusers: module -> its names; there are several where it is several layers in diffusers.
        places: every name that a file may have for a layer -> where that is.
    """

    kohya: Mapping[str, str]
    diffusers: Mapping[str, tuple[str, ...]]
    places: Mapping[str, Place]

    def __or__(self, other: LayerNames) -> LayerNames:
        """Return the names of the layers of both."""
        return LayerNames(
            {**self.kohya, **other.kohya},
            {**self.diffusers, **other.diffusers},
            {**self.places, **other.places},
        )


def cut(parts: Parts, rows: Rows) -> dict[str, Tensor]:
    """Return the parts of a LoRA or DoRA (A: r in, B: out r) for some outputs of a layer: B[rows] A."""
    by_output = (B, MAGNITUDE, SCALE)
    return {name: taken(tensor, rows) if name in by_output else tensor for name, tensor in parts.items()}


def taken(tensor: Tensor, rows: Rows) -> Tensor:
    """Return rows of a tensor; all where none are named."""
    return torch.cat([tensor[first : first + count] for first, count in rows]) if rows else tensor


def joined(pieces: Sequence[tuple[Place, Parts]]) -> dict[str, Tensor]:
    """Return the parts of a layer from those of the layers that it is in a file, so what `cut` cut.

    Where all have one A it is kept, with rows of B. Otherwise the A's are put under each other, and each B,
    with its scale, beside those of the others, 0 for all outputs but its own: the same weights, at a rank
    that is the sum of theirs. Outputs that no piece has get nothing.

    Raises:
        FileError: the pieces are of a kind that cannot be joined, or do not fit the layer.
    """
    if len(pieces) == 1 and not pieces[0][0].rows:
        return dict(pieces[0][1])
    module, outputs = pieces[0][0].module, pieces[0][0].outputs
    _check(module, outputs, pieces)
    given = [parts for _, parts in pieces]
    ranks = [len(parts[A]) for parts in given]
    scales = [
        number(parts["alpha"]) / rank if "alpha" in parts else 1.0
        for parts, rank in zip(given, ranks, strict=True)
    ]
    if all(torch.equal(parts[A], given[0][A]) for parts in given) and len(set(scales)) == 1:
        columns, a, factors = [0] * len(pieces), given[0][A].float(), [1.0] * len(pieces)
        alpha = torch.tensor(scales[0] * ranks[0])
    else:
        columns, factors = [sum(ranks[:i]) for i in range(len(ranks))], scales
        a = torch.cat([parts[A].float() for parts in given])
        alpha = torch.tensor(float(sum(ranks)))
    b = torch.zeros(outputs, len(a))
    for (place, parts), rank, column, factor in zip(pieces, ranks, columns, factors, strict=True):
        _put(b[:, column : column + rank], place.rows, parts[B].float() * factor)
    found = {A: a, B: b, "alpha": alpha}
    for name in (MAGNITUDE, SCALE):
        if name in given[0]:
            found[name] = torch.zeros(outputs, *given[0][name].shape[1:])
            for place, parts in pieces:
                _put(found[name], place.rows, parts[name].float())
    return found


def _check(module: str, outputs: int, pieces: Sequence[tuple[Place, Parts]]) -> None:
    """Raise FileError unless pieces can be joined to one layer."""
    kinds = {frozenset(parts.keys() - {"alpha"}) for _, parts in pieces}
    if len(kinds) > 1 or not {A, B} <= next(iter(kinds)) <= {A, B, MAGNITUDE, SCALE}:
        names = sorted(set().union(*kinds))
        raise FileError(
            f"Expected a LoRA for the layer {shown(module)}, which is {len(pieces)} layers in this file, got "
            f"{', '.join(names)}. Use a LoRA, or a file in the kohya format."
        )
    counts = [sum(count for _, count in place.rows) or outputs for place, _ in pieces]
    inputs = pieces[0][1][A].shape[-1:]
    fits = all(
        parts[A].ndim == parts[B].ndim == 2
        and parts[A].numel() > 0
        and parts[A].shape[1:] == inputs
        and parts[B].shape == (count, len(parts[A]))
        and all(parts[name].shape[:1] == (count,) for name in (MAGNITUDE, SCALE) if name in parts)
        for count, (_, parts) in zip(counts, pieces, strict=True)
    )
    if not fits or (sum(counts) != outputs and next(iter(kinds)) != {A, B}):
        raise FileError(
            f"Expected LoRAs that make up the {outputs} outputs of the layer {shown(module)}, got some of "
            "other shapes. Use a LoRA made for this model."
        )


def _put(whole: Tensor, rows: Rows, values: Tensor) -> None:
    """Add values to rows of a tensor; to all where none are named."""
    done = 0
    for first, count in rows or ((0, len(whole)),):
        whole[first : first + count] += values[done : done + count]
        done += count
