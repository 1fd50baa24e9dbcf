"""Eq. 6."""

from __future__ import annotations

import pytest
import torch
from toys import random

from domaingallery_core.guidance import add_enhancement, direction, enhance, guide, rescale

U, T, B = (random(2, 3, 4, 4, seed=seed).double() for seed in (1, 2, 3))


def test_v_uncond_is_the_formula_of_the_paper():
    found = enhance(U, T, B, guidance_scale=7.5, enhancement=0.5, mode="V-uncond")

    torch.testing.assert_close(found, U + 7.5 * (T - U) + 7.5 * 0.5 * (B - U))


def test_vn_n_is_the_formula_of_the_paper():
    found = enhance(U, T, B, guidance_scale=7.5, enhancement=0.5, mode="VN-N")

    torch.testing.assert_close(found, U + 7.5 * (T - U) + 7.5 * 0.5 * (T - B))


@pytest.mark.parametrize("mode", ["V-uncond", "VN-N"])
def test_the_last_summand_can_be_added_to_any_guidance(mode):
    """It does not read what it is added to."""
    guided = random(2, 3, 4, 4, seed=4).double()
    term = direction(U, T, B, mode=mode)

    found = add_enhancement(guided, term, guidance_scale=5.0, enhancement=1.3)

    whole = enhance(U, T, B, guidance_scale=5.0, enhancement=1.3, mode=mode)
    torch.testing.assert_close(found - guided, whole - guide(U, T, guidance_scale=5.0))


def test_the_strength_can_differ_over_the_picture():
    weights = torch.zeros(1, 1, 4, 4, dtype=torch.double)
    weights[..., :2] = 1.0

    found = add_enhancement(U, B - U, guidance_scale=5.0, enhancement=1.3 * weights)

    torch.testing.assert_close(found[..., :2], (U + 6.5 * (B - U))[..., :2])
    assert torch.equal(found[..., 2:], U[..., 2:])


@pytest.mark.parametrize("mode", ["none", "V-uncond", "VN-N"])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1, 4, 2, 8, 8)])
def test_any_shape_will_do_and_no_strength_is_plain_guidance(mode, shape):
    u, t, b = (random(*shape, seed=seed) for seed in (1, 2, 3))

    found = enhance(u, t, b, guidance_scale=7.5, enhancement=0.0, mode=mode)

    assert torch.equal(found, guide(u, t, guidance_scale=7.5))


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        ((U, T, None), "VN-N", "what 'VN-N' compares it with, got None"),
        ((None, T, B), "V-uncond", "what 'V-uncond' compares it with, got None"),
        ((U, T, B), "vn-n", "V-uncond or VN-N, got 'vn-n'"),
        ((U, T, B), "none", "V-uncond or VN-N, got 'none'"),
    ],
)
def test_a_missing_prediction_and_an_unknown_mode_are_refused(given, mode, message):
    with pytest.raises(ValueError, match=message):
        direction(*given, mode=mode)


def test_rescaling_moves_the_contrast_of_each_sample_to_that_of_the_target():
    guided = enhance(U, T, B, guidance_scale=7.5, enhancement=1.0, mode="V-uncond")
    axes = (1, 2, 3)

    assert torch.equal(rescale(guided, T, amount=0.0), guided)
    torch.testing.assert_close(rescale(guided, T, amount=1.0).std(axes), T.std(axes))
    half = (guided.std(axes) + T.std(axes)) / 2
    torch.testing.assert_close(rescale(guided, T, amount=0.5).std(axes), half)
    assert torch.isfinite(rescale(torch.zeros_like(T), T, amount=1.0)).all()
