"""Weights that are kept in one place, and moved to another block by block while they are computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import attribute

#: How many blocks a device may be behind, as what they let go of is not free before they are done.
BEHIND = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """Hold a weight where it is kept, and which of the parameters of a module it is."""

    owner: dict[str, Any]
    name: str
    kept: Tensor


class Mover:
    """Move the weights of a block to a device before it is computed, and let go of them after.

    The next block comes while one is computed: that which came next the last time. What a backward pass reads
    of a weight it holds itself, so blocks are to be computed again in it.

    Attributes:
        moved: how many bytes were moved in all.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, *, ahead: bool | None = None
    ) -> None:
        """Take over blocks whose weights do not learn.

        Args:
            ahead: whether the next block comes meanwhile; None for where the device has streams.
        """
        self.blocks, self.device = tuple(blocks), device
        self.moved = 0
        self._weights = [[*_weights_of(block)] for block in self.blocks]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead = self._stream is not None if ahead is None else ahead
        self._next: dict[tuple[int, int], int] = {}
        self._last = (-1, -1)
        self._coming: tuple[int, list[Tensor]] | None = None
        self._marks: deque[torch.cuda.Event] = deque()

    def weights(self) -> list[Tensor]:
        """Return the weights of all blocks, where they are kept."""
        return [weight.kept for weights in self._weights for weight in weights]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Return a context in which the weights of the blocks come and go."""
        with ExitStack() as stack:
            for number, block in enumerate(self.blocks):
                stack.enter_context(attribute(block, "forward", self._called(number, block.forward)))
            stack.callback(self._forget)
            yield

    def _forget(self) -> None:
        self._coming = None

    def _called(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._there(number):
                return forward(*args, **kwargs)

        return run

    @contextmanager
    def _there(self, number: int) -> Iterator[None]:
        weights, tensors = self._weights[number], self._taken(number)
        try:
            for weight, tensor in zip(weights, tensors, strict=True):
                weight.owner[weight.name] = nn.Parameter(tensor, requires_grad=False)
            del tensors
            yield
        finally:
            for weight in weights:
                weight.owner[weight.name] = weight.kept

    def _taken(self, number: int) -> list[Tensor]:
        """Return the weights of a block on the device, and begin to move those of the next."""
        coming, self._coming = self._coming, None
        tensors = coming[1] if coming is not None and coming[0] == number else self._copied(number)
        del coming
        self._wait_for(tensors)
        self._next[self._last] = number
        self._last = self._last[1], number
        following = self._next.get(self._last)
        if self.ahead and following is not None:
            self._coming = following, self._copied(following)
        return tensors

    def _copied(self, number: int) -> list[Tensor]:
        weights = self._weights[number]
        self.moved += sum(weight.kept.nbytes for weight in weights)
        beside = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.no_grad(), beside:
            return [self.copied(weight.kept) for weight in weights]

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device, a copy also where it is there already."""
        return tensor.detach().to(self.device, non_blocking=True, copy=True)

    def _wait_for(self, tensors: Sequence[Tensor]) -> None:
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in tensors:
            for part in _parts(tensor):
                part.record_stream(current)
        self._marks.append(current.record_event())
        if len(self._marks) > BEHIND:
            self._marks.popleft().synchronize()


def _weights_of(block: nn.Module) -> Iterator[_Weight]:
    """Yield the weights of a block, which must not learn."""
    for module in block.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                yield _Weight(module._parameters, name, weight)


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that one of a quantised kind is made of, or itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]
