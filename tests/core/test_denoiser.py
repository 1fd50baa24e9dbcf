"""Conditions."""

from __future__ import annotations

import pytest
import torch

from domaingallery_core.denoiser import Condition
from domaingallery_core.errors import InputError


def test_conditions_expand_as_views_and_join_row_by_row():
    one = Condition({"context": torch.ones(1, 3, 2), "y": torch.ones(1, 5)})
    two = Condition({"context": torch.zeros(2, 3, 2), "y": torch.zeros(2, 5)})

    joined = Condition.cat([one.expand(4), two])

    assert joined.shapes() == {"context": (6, 3, 2), "y": (6, 5)}
    assert one.expand(4).tensors["context"].data_ptr() == one.tensors["context"].data_ptr()
    assert joined.to(dtype=torch.float64).tensors["y"].dtype == torch.float64


def test_conditions_that_do_not_fit_are_refused():
    one = Condition({"context": torch.ones(1, 3, 2)})
    for other in (Condition({"context": torch.ones(1, 4, 2)}), Condition({"y": torch.ones(1, 3, 2)})):
        with pytest.raises(InputError, match="encoded alike"):
            Condition.cat([one, other])
    with pytest.raises(ValueError, match="1 or 3 rows"):
        Condition({"context": torch.ones(2, 3, 2)}).expand(3)
    with pytest.raises(ValueError, match="one batch size"):
        Condition({"context": torch.ones(2, 3, 2), "y": torch.ones(3, 1)})
