"""The blocks of a network, and which of them are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

#: Returns a context for one call of a block, from its number and what it is given.
Watch = Callable[[int, tuple[Any, ...]], AbstractContextManager[None]]


class Blocks:
    """Keep of each block either all that its backward pass reads, or its input alone.

    Gradients are the same in either case.

    Attributes:
        again: numbers of the blocks that are computed again; read at each call.
        always: those of them that have to be.
        random: whether a block draws random numbers, which are then drawn again alike.
        watch: what looks at the calls of blocks, none of which is computed again meanwhile.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = tuple(modules)
        self.again: frozenset[int] = frozenset()
        self.always: frozenset[int] = frozenset()
        self.random = True
        self.watch: Watch | None = None

    def __len__(self) -> int:
        return len(self.modules)

    @property
    def all(self) -> frozenset[int]:
        """Return the numbers of all blocks."""
        return frozenset(range(len(self.modules)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Return a context in which the blocks are called as is set here."""
        with ExitStack() as stack:
            for number, block in enumerate(self.modules):
                stack.enter_context(attribute(block, "forward", self._called(number, block.forward)))
            yield

    def _called(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.watch is not None:
                with self.watch(number, (*args, *kwargs.values())):
                    return forward(*args, **kwargs)
            if number not in self.again or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # A network may change such options as it goes from block to block.
            kwargs = {name: dict(v) if isinstance(v, dict) else v for name, v in kwargs.items()}
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=self.random, **kwargs)

        return run


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Return a context in which one object has an attribute; what it had comes back, also if it had none."""
    had, before = name in owner.__dict__, owner.__dict__.get(name)
    try:
        owner.__dict__[name] = value
        yield
    finally:
        if had:
            owner.__dict__[name] = before
        else:
            owner.__dict__.pop(name, None)
