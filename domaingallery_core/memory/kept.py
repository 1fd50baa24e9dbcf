"""What a forward pass keeps for its backward pass, counted without keeping it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from .blocks import Blocks

#: What is kept outside of blocks.
OUTSIDE = -1


class NotCounted(Exception):
    """Raised where a forward pass reads what it keeps, which is not there while it is counted."""


@dataclass(slots=True, eq=False)
class _Kept:
    """Hold the size of a storage in bytes, and the numbers of the blocks that keep it or are given it."""

    size: int
    by: set[int] = field(default_factory=set)
    to: set[int] = field(default_factory=set)


class Kept:
    """Know what a step keeps for its backward pass, whichever blocks are computed again.

    Attributes:
        largest: the most bytes that one call of a block keeps, with the copies of weights that it makes.
    """

    def __init__(self) -> None:
        self.largest = 0
        self._storages: dict[Any, _Kept] = {}

    def bytes(self, again: Collection[int] = ()) -> int:
        """Return how many bytes are kept where of these blocks the inputs alone are."""
        again = frozenset(again)
        return sum(each.size for each in self._storages.values() if not each.by <= again or each.to & again)

    def peak(self, again: Collection[int] = ()) -> int:
        """Return how many bytes a step takes at most: what is kept, and a block in its backward pass."""
        return self.bytes(again) + self.largest

    def fewest(self, blocks: Blocks, most: float) -> frozenset[int]:
        """Return the fewest blocks that must be computed again for a peak of at most so many bytes.

        Where that cannot be, all that help.
        """
        again = blocks.always
        gains = {block: self.bytes() - self.bytes({block}) for block in blocks.all - again}
        for block in sorted(gains, key=lambda block: (-gains[block], block)):
            if self.peak(again) <= most or gains[block] <= 0:
                break
            again |= {block}
        return again


@contextmanager
def counting(
    blocks: Blocks, fixed: Iterable[Tensor], passed: Callable[[Tensor], bool] = lambda tensor: False
) -> Iterator[Kept]:
    """Return a context in which what a forward pass would keep is counted; nothing can go backward from it.

    It takes the memory of a pass without gradients. Storages are told apart as long as it lasts: the memory
    of one that is gone may be that of the next.

    Args:
        fixed: tensors that are there in any case.
        passed: tells whether a tensor is a copy that is not kept, outside of blocks that are computed again.
    """
    kept, there = Kept(), {reference for tensor in fixed if (reference := _reference(tensor))}
    block, call = OUTSIDE, dict[StorageWeakRef, int]()

    def known(tensor: Tensor) -> _Kept | None:
        reference = _reference(tensor)
        if reference is None or reference in there:
            return None
        return kept._storages.setdefault(reference, _Kept(tensor.untyped_storage().nbytes()))

    def pack(tensor: Tensor) -> None:
        reference = _reference(tensor)
        if reference is None or reference in there:
            return
        if block != OUTSIDE:
            call[reference] = tensor.untyped_storage().nbytes()
        if not passed(tensor) and (found := known(tensor)) is not None:
            found.by.add(block)

    def unpack(_: None) -> NoReturn:
        raise NotCounted

    @contextmanager
    def watch(number: int, given: tuple[Any, ...]) -> Iterator[None]:
        nonlocal block
        if block != OUTSIDE or not torch.is_grad_enabled():  # one inside of another is part of it
            yield
            return
        block = number
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor) and (found := known(tensor)) is not None:
                found.to.add(number)
        try:
            yield
        finally:
            kept.largest = max(kept.largest, sum(call.values()))
            call.clear()
            block = OUTSIDE

    blocks.watch = watch
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield kept
    finally:
        blocks.watch = None
        kept._storages = dict(enumerate(kept._storages.values()))


def _reference(tensor: Tensor) -> StorageWeakRef | None:
    """Return what stands for the storage of a tensor; None for one that has none of its own."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None
