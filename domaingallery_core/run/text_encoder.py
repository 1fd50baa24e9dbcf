"""A learning rate of its own for a text encoder that learns beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..files.formats.comfyui import TEXT
from .optimizers import OptimizerSettings


@contextmanager
def text_encoder_rate(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> Iterator[None]:
    """Return a context in which a step moves a text encoder as far as its own learning rate says.

    Steps of AdamW are proportional to the learning rate, so they are shortened, or lengthened, afterwards.
    The rate follows the schedule of the other.

    Args:
        parameters: all that learn, by name; those of a text encoder begin with TEXT.
    """
    share = settings.text_encoder_rate / settings.learning_rate if settings.text_encoder_rate else 1.0
    own = [p for name, p in parameters.items() if share != 1 and name.startswith(TEXT)]
    before = [p.detach().clone() for p in own]
    yield
    with torch.no_grad():
        for parameter, old in zip(own, before, strict=True):
            parameter.copy_(old.lerp(parameter, share))
