"""What the tests of sampling share: a MODEL, which sampling leaves as it is, and prompts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nodes.tiny import tiny_model, tiny_prompts


@pytest.fixture(scope="module")
def model(comfy) -> Any:
    """Return a MODEL with random weights."""
    return tiny_model()


@pytest.fixture(scope="module")
def domain(nodes) -> Any:
    """Return DomainPrompts with random embeddings."""
    return tiny_prompts(nodes)


@pytest.fixture(scope="module")
def prompts(domain) -> Any:
    """Return the prompts of the only category of the domain."""
    return domain.first
