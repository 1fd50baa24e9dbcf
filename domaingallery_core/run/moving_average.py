"""A moving average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average named weights exponentially; the n-th update decays by at most (1 + n) / (10 + n)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.updates = 0
        self.values = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the averages are the weights; without a decay nothing changes."""
        kept: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                for name, value in self.values.items():
                    kept[name] = self.parameters[name].detach().clone()
                    self.parameters[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)
