"""Conditions."""

from __future__ import annotations

import pytest
import torch

from domaingallery_core.model.denoiser import Condition, Conditions, denoise_together, resolved


def test_conditions_expand_as_views_and_join_row_by_row():
    one = Condition({"context": torch.ones(1, 3, 2), "y": torch.ones(1, 5)})
    two = Condition({"context": torch.zeros(2, 3, 2), "y": torch.zeros(2, 5)})

    joined = Condition.cat([one.expand(4), two])

    assert joined.shapes() == {"context": (6, 3, 2), "y": (6, 5)}
    assert one.expand(4).tensors["context"].data_ptr() == one.tensors["context"].data_ptr()
    assert joined.to(dtype=torch.float64).tensors["y"].dtype == torch.float64
    numbers = Condition({"tokens": torch.ones(1, 3, dtype=torch.int64)})
    assert numbers.to(dtype=torch.float64).tensors["tokens"].dtype == torch.int64


def test_conditions_that_do_not_fit_are_refused():
    one = Condition({"context": torch.ones(1, 3, 2)}, {"tokens": 3})
    for other in (
        Condition({"context": torch.ones(1, 4, 2)}, {"tokens": 3}),
        Condition({"y": torch.ones(1, 3, 2)}, {"tokens": 3}),
        Condition({"context": torch.ones(1, 3, 2)}, {"tokens": 4}),
        Condition({"context": torch.ones(1, 3, 2)}, {"tokens": torch.tensor(3)}),
        Condition({"context": torch.ones(1, 3, 2)}),
    ):
        assert not one.fits(other)
        with pytest.raises(ValueError, match="conditions that fit"):
            Condition.cat([one, other])
    assert one.fits(one.expand(4)) and Condition.cat([one, one]).constants == {"tokens": 3}
    assert Condition({}).fits(Condition({}).expand(3)), "nothing is the same for any number of rows"
    with pytest.raises(ValueError, match="1 or 3 rows"):
        Condition({"context": torch.ones(2, 3, 2)}).expand(3)
    with pytest.raises(ValueError, match="one batch size"):
        Condition({"context": torch.ones(2, 3, 2), "y": torch.ones(3, 1)})


class Lengths:
    """Be a model that reads the length, a mask and a constant of each prompt."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, sigma, condition):
        self.rows.append(len(x))
        context, mask = condition.tensors["context"], condition.tensors["mask"]
        read = (context * mask[..., None]).sum(dim=(1, 2)) * condition.constants["tokens"]
        return x * sigma[:, None, None, None] + (read + context.shape[1])[:, None, None, None]


def prompt(length, seed, tokens=None):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(1, length, 2, generator=generator)
    mask = (torch.arange(length) < (tokens or length)).float()[None]
    return Condition({"context": context, "mask": mask}, {"tokens": tokens or length})


def test_each_prompt_gives_in_company_what_it_gives_alone():
    """With other lengths, masks and constants; those that fit are evaluated together."""
    prompts = [prompt(5, 1, 3), prompt(7, 2), prompt(5, 3, 3), prompt(5, 4, 2), prompt(7, 5)]
    parts = [(torch.randn(2, 1, 2, 2), torch.rand(2), each) for each in prompts]
    alone, together = Lengths(), Lengths()

    expected = [alone(x, sigma, condition.expand(2)) for x, sigma, condition in parts]
    found = denoise_together(together, parts)

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert together.rows == [4, 4, 2]


def test_constants_that_are_tensors_are_compared_whole():
    def condition(*numbers):
        return Condition({"context": torch.ones(1, 3, 2)}, {"sizes": torch.tensor(numbers)})

    assert Condition.cat([condition(3, 4), condition(3, 4)]).shapes() == {"context": (2, 3, 2)}
    for other in (condition(3, 5), condition(3, 4, 5)):
        with pytest.raises(ValueError, match="Expected conditions that fit"):
            Condition.cat([condition(3, 4), other])


def test_a_prompt_that_learns_is_made_and_changed_when_it_is_looked_at():
    made = []

    def learning():
        made.append(1)
        return Condition({"context": torch.zeros(1, len(made), 2)})

    changed = Conditions(target=learning).map(lambda c: c.expand(4))

    assert not made and changed.source is None
    assert [resolved(changed.target).shapes()["context"] for _ in range(2)] == [(4, 1, 2), (4, 2, 2)]
    fixed = learning()
    assert resolved(fixed) is fixed
