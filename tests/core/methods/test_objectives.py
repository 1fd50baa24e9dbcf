"""The mean-squared terms: what they are the mean of, and in what precision."""

from __future__ import annotations

import pytest
import torch
from toys import random

from domaingallery_core.methods.objectives import disentanglement, erasure, mean_squared_error, reconstruction


@pytest.mark.parametrize("dtypes", [("half", "half"), ("half", "float"), ("double", "half")])
def test_the_mean_is_in_float32_at_least(dtypes):
    """300 squared is more than float16 holds."""
    first, second = (torch.zeros(2, 3, 4, 4, dtype=getattr(torch, dtype)) for dtype in dtypes)

    for found in (mean_squared_error(first + 300, second), reconstruction(first + 300, second)):
        assert found.dtype == (torch.float64 if "double" in dtypes else torch.float32)
        assert float(found) == 90000


@pytest.mark.parametrize("term", [erasure, disentanglement])
def test_what_is_to_be_predicted_gets_no_gradient(term):
    moved, fixed = (random(2, 3, 4, 4, seed=seed).requires_grad_() for seed in (1, 2))

    loss = term(moved, fixed)
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float((moved - fixed).detach().square().mean()))
    torch.testing.assert_close(moved.grad, (2 * (moved - fixed) / moved.numel()).detach())
    assert fixed.grad is None
