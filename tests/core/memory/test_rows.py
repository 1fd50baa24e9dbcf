"""A few rows at a time give what all at once give, but for the last digits."""

from __future__ import annotations

import pytest
import torch
from toys import ToyDenoiser, network, random

from domaingallery_core.memory.rows import FewRows
from domaingallery_core.model.denoiser import Condition


def asked(rows):
    x, sigma = random(rows, 2, 4, 4, seed=1), torch.linspace(0.5, 2, rows)
    return x, sigma, Condition({"context": random(rows, 3, 8, seed=2), "shared": torch.ones(1, 2)})


@pytest.mark.parametrize("most", [1, 2, 3, 5, None])
def test_predictions_and_features_are_the_same(most):
    denoiser, given = ToyDenoiser(network()), asked(5)
    few = FewRows(denoiser)
    expected, features = denoiser(*given), denoiser.features(*given)
    denoiser.rows.clear()
    few.most = most

    torch.testing.assert_close(few(*given), expected)
    for mine, theirs in zip(few.features(*given), features, strict=True):
        torch.testing.assert_close(mine, theirs)

    assert sum(denoiser.rows) == 5 and max(denoiser.rows) == min(most or 5, 5)
    assert (few.seen, few.evaluated) == (5, 10)


def test_a_condition_of_one_row_serves_all():
    x, sigma, condition = asked(4)
    one = Condition({"context": condition.tensors["context"][:1]})
    denoiser = ToyDenoiser(network())
    few = FewRows(denoiser)
    few.most = 3

    torch.testing.assert_close(few(x, sigma, one), denoiser(x, sigma, one))
