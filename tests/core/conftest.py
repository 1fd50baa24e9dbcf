"""Fixtures of the core's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

import toys

from domaingallery_core.trainables.adapters import Adapter


@pytest.fixture(autouse=True)
def one_thread():
    """Leave the other cores to others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def denoiser() -> toys.ToyDenoiser:
    """Return a random network behind the core's protocol."""
    return toys.ToyDenoiser(toys.network())


@pytest.fixture
def adapter(denoiser: toys.ToyDenoiser) -> Iterator[Adapter]:
    """Give an adapter with random weights on the denoiser's network."""
    with toys.inject(denoiser.network) as adapter:
        yield toys.filled(adapter, seed=6)
