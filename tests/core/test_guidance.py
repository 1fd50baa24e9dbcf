"""Eq. 6."""

from __future__ import annotations

import pytest
import torch
from toys import random

from domaingallery_core.guidance import enhance, enhanced_target, guide

U, T, B = (random(2, 3, 4, 4, seed=seed).double() for seed in (1, 2, 3))


def test_v_uncond_is_the_formula_of_the_paper():
    found = enhance(U, T, B, guidance_scale=7.5, enhancement=0.5, mode="V-uncond")

    torch.testing.assert_close(found, U + 7.5 * (T - U) + 7.5 * 0.5 * (B - U))


def test_vn_n_is_the_formula_of_the_paper():
    found = enhance(U, T, B, guidance_scale=7.5, enhancement=0.5, mode="VN-N")

    torch.testing.assert_close(found, U + 7.5 * (T - U) + 7.5 * 0.5 * (T - B))


@pytest.mark.parametrize("mode", ["none", "V-uncond", "VN-N"])
def test_guiding_the_shifted_target_is_the_enhancement(mode):
    shifted = enhanced_target(U, T, B, enhancement=1.3, mode=mode)

    found = enhance(U, T, B, guidance_scale=5.0, enhancement=1.3, mode=mode)

    assert torch.equal(guide(U, shifted, guidance_scale=5.0), found)


@pytest.mark.parametrize("mode", ["none", "V-uncond", "VN-N"])
def test_no_enhancement_is_plain_guidance(mode):
    found = enhance(U, T, B, guidance_scale=7.5, enhancement=0.0, mode=mode)

    assert torch.equal(found, U + 7.5 * (T - U))


@pytest.mark.parametrize(("base", "mode"), [(None, "VN-N"), (B, "vn-n")])
def test_a_missing_base_and_an_unknown_mode_are_refused(base, mode):
    with pytest.raises(ValueError, match="Expected a"):
        enhanced_target(U, T, base, enhancement=1.0, mode=mode)
