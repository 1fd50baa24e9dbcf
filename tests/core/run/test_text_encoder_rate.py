"""A text encoder moves by a learning rate of its own, as if it were trained apart with that."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import plan, random

from domaingallery_core.errors import InputError
from domaingallery_core.files.formats.comfyui import TEXT
from domaingallery_core.run.optimizers import learning_rate, make_optimizer
from domaingallery_core.run.text_encoder import text_encoder_rate

NAMES = ("attn1.to_q", f"{TEXT}attn1.to_q")


def moved(own, names=NAMES, **changes):
    """Return weights after three steps under fixed gradients."""
    settings = plan("domaingallery", steps=3, text_encoder_rate=own, **changes).optimizer
    weights = {name: nn.Parameter(random(2, 3, seed=i)) for i, name in enumerate(NAMES) if name in names}
    optimizer = make_optimizer([*weights.values()], settings)
    for step in range(1, 4):
        for i, name in enumerate(NAMES):
            if name in weights:
                weights[name].grad = random(2, 3, seed=10 * step + i)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        with text_encoder_rate(weights, settings):
            optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


@pytest.mark.parametrize("changes", [{}, {"schedule": "linear"}, {"warmup_steps": 2}])
@pytest.mark.parametrize("rate", [2e-3, 5e-2])
def test_each_moves_as_if_it_were_alone_with_its_own_rate(rate, changes):
    both = moved(rate, learning_rate=1e-2, **changes)

    network = moved(0.0, NAMES[:1], learning_rate=1e-2, **changes)
    text = moved(0.0, NAMES[1:], learning_rate=rate, **changes)
    assert torch.equal(both[NAMES[0]], network[NAMES[0]])
    torch.testing.assert_close(both[NAMES[1]], text[NAMES[1]], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_without_a_rate_of_its_own_or_with_the_same_nothing_is_done(rate):
    found = moved(rate, learning_rate=1e-2)

    plain = moved(0.0, learning_rate=1e-2)
    assert all(torch.equal(found[name], plain[name]) for name in NAMES)


def test_an_optimizer_that_averages_its_steps_has_one_rate():
    """What it averages is not what a step moved."""
    with pytest.raises(InputError, match=r"one learning rate .* 'adamw_schedulefree', .* got 0\.001"):
        plan("domaingallery", optimizer="adamw_schedulefree", text_encoder_rate=1e-3)
