"""What is trained on a model that belongs to someone else, as a run sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Trainable(Protocol):
    """Be trained: an adapter, say. Nothing else of it is known to a run, its state and its checkpoints."""

    @property
    def roots(self) -> Sequence[nn.Module]:
        """Return the modules that it sits on."""
        ...

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        """Return what an optimizer moves, in a fixed order, by names that say where each belongs."""
        ...

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the model is the frozen base; may be nested."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that was learned."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        ...
