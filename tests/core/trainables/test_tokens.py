"""New tokens learn as vectors of their own."""

from __future__ import annotations

import pytest
import torch

from domaingallery_core.errors import AdapterError
from domaingallery_core.trainables.tokens import Tokens
from domaingallery_core.trainables.trainable import Trainable

FIRST = {"clip_l": torch.ones(2, 4), "clip_g": torch.full((2, 6), 2.0)}


def test_a_run_knows_nothing_else_of_them():
    assert isinstance(Tokens(FIRST), Trainable)


def test_they_are_what_they_began_with_where_they_are_off():
    tokens = Tokens(FIRST)
    with torch.no_grad():
        tokens.named_parameters()["clip_l"].add_(1)

    with tokens.off():
        with tokens.off():
            pass
        assert all(torch.equal(tokens.vectors[name], FIRST[name]) for name in FIRST)
    assert torch.equal(tokens.vectors["clip_l"], torch.full((2, 4), 2.0))
    assert torch.equal(FIRST["clip_l"], torch.ones(2, 4))


def test_a_state_comes_back_and_is_no_view():
    tokens, other = Tokens(FIRST), Tokens(FIRST)
    with torch.no_grad():
        tokens.named_parameters()["clip_g"].mul_(3)
    state = tokens.state_dict()
    other.load(state)
    with torch.no_grad():
        tokens.named_parameters()["clip_g"].zero_()

    assert torch.equal(other.vectors["clip_g"].detach(), torch.full((2, 6), 6.0))
    assert bool((state["clip_g"] == 6).all())


@pytest.mark.parametrize("given", [{"clip_l": torch.ones(2, 4)}, FIRST | {"clip_l": torch.ones(1, 4)}])
def test_vectors_of_another_model_are_refused(given):
    with pytest.raises(AdapterError, match=r"Expected vectors \{'clip_l': \(2, 4\), .*\}, got"):
        Tokens(FIRST).load(given)


def test_vectors_that_a_loader_made_in_inference_mode_learn():
    with torch.inference_mode():
        tokens = Tokens({"clip_l": torch.ones(1, 4)})

    assert all(not p.is_inference() and p.requires_grad for p in tokens.named_parameters().values())
