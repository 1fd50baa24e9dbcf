"""Similarity consistency and recurrent denoising."""

from __future__ import annotations

import math

import pytest
import torch
from toys import ToyDenoiser, conditions, latents, network, random

from domaingallery_core.methods.similarity import (
    pairwise_similarities,
    recurrent_denoise,
    recurrent_timesteps,
    similarity_consistency,
)


@pytest.mark.parametrize(
    ("timestep", "steps", "expected"),
    [
        (250, 5, [250, 200, 150, 100, 50]),
        (7, 5, [7, 6, 4, 3, 1]),
        (999, 5, [999, 799, 599, 400, 200]),
        (5, 5, [5, 4, 3, 2, 1]),
        (4, 5, [4, 3, 2, 1, 0]),
        (1, 5, [1, 0]),
        (0, 5, [0]),
        (0, 1, [0]),
        (500, 1, [500]),
    ],
)
def test_the_recurrent_timesteps_are_those_of_the_reference(timestep, steps, expected):
    assert recurrent_timesteps(timestep, steps) == expected


def test_pairwise_similarities_leave_out_the_image_itself():
    feature = random(3, 2, 4, 4, seed=1)

    found = pairwise_similarities(feature)

    def cosine(i, j):
        return torch.cosine_similarity(feature[i].flatten(), feature[j].flatten(), dim=0)

    expected = torch.stack([torch.stack([cosine(i, j) for j in range(3) if j != i]) for i in range(3)])
    torch.testing.assert_close(found, expected)


def naive(moving, fixed, scale):
    """Write the definition out in loops."""
    total, rows = 0.0, len(moving[0])
    for f, g in zip(moving, fixed, strict=True):
        p, q = (pairwise_similarities(t.double()).softmax(1).tolist() for t in (f, g))
        for i in range(rows):
            for j in range(rows - 1):
                if scale == "paper":
                    total += p[i][j] * math.log(p[i][j] / q[i][j]) / rows
                else:
                    total += q[i][j] * math.log(q[i][j] / p[i][j]) / rows / (rows - 1)
    return total / len(moving)


@pytest.mark.parametrize("scale", ["released", "paper"])
@pytest.mark.parametrize("rows", [3, 4, 7])
def test_both_scales_follow_their_definition(scale, rows):
    moving = [random(rows, 3, 4, 4, seed=seed) for seed in (1, 2)]
    fixed = [random(rows, 3, 4, 4, seed=seed) for seed in (3, 4)]

    found = similarity_consistency(moving, fixed, scale=scale)

    assert float(found) == pytest.approx(naive(moving, fixed, scale), rel=1e-4)


@pytest.mark.parametrize("scale", ["released", "paper"])
def test_a_small_difference_is_not_lost_in_rounding(scale):
    """At the beginning of a training, divergences are far below what float32 can tell from 0."""
    fixed = [random(4, 3, 4, 4, seed=1)]
    moving = [fixed[0] + 1e-3 * random(4, 3, 4, 4, seed=2)]

    found = float(similarity_consistency(moving, fixed, scale=scale))

    assert found == pytest.approx(naive(moving, fixed, scale), rel=1e-2) and found < 1e-6


@pytest.mark.parametrize("scale", ["released", "paper"])
def test_two_images_give_exactly_zero_and_no_gradient(scale):
    moving = [random(2, 3, 4, 4, seed=1).requires_grad_()]

    loss = similarity_consistency(moving, [random(2, 3, 4, 4, seed=2)], scale=scale)
    loss.backward()

    assert float(loss.detach()) == 0
    assert float(moving[0].grad.abs().max()) == 0


def test_equal_features_give_zero_and_the_source_gets_no_gradient():
    fixed = random(4, 3, 4, 4, seed=1).requires_grad_()
    moving = random(4, 3, 4, 4, seed=2).requires_grad_()

    similarity_consistency([moving], [fixed]).backward()

    assert fixed.grad is None
    assert float(moving.grad.abs().max()) > 0
    assert float(similarity_consistency([fixed], [fixed]).detach()) == pytest.approx(0, abs=1e-12)


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        similarity_consistency([random(1, 3, seed=1)], [random(1, 3, seed=2)])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("timestep", [2, 600])
def test_a_known_first_step_changes_nothing_but_the_number_of_evaluations(guidance, timestep):
    denoiser, prompts = ToyDenoiser(network()), conditions()
    x = latents(3, 1)
    options = {"steps": 5, "guidance": guidance, "empty": prompts.empty}
    sigma = denoiser.process.sigma(timestep, x)
    uncond = denoiser(x, sigma, prompts.empty.expand(3))
    first = uncond + guidance * (denoiser(x, sigma, prompts.target.expand(3)) - uncond)
    denoiser.rows.clear()

    whole = recurrent_denoise(denoiser, x, timestep, prompts.target, **options)
    evaluations = len(denoiser.rows)
    shared = recurrent_denoise(denoiser, x, timestep, prompts.target, **options, first=first)

    torch.testing.assert_close(shared, whole)
    assert len(denoiser.rows) - evaluations == evaluations - 1


def test_guidance_without_an_empty_prompt_is_refused():
    denoiser = ToyDenoiser(network())
    with pytest.raises(ValueError, match="empty prompt"):
        recurrent_denoise(denoiser, latents(3, 1), 9, conditions().target, steps=2, guidance=2.0, empty=None)


def test_features_of_other_layers_are_refused():
    one, other = random(2, 3, seed=1), random(2, 3, seed=2)
    for given in (([one], [one, other]), ([], [])):
        with pytest.raises(ValueError, match="Expected as many features twice"):
            similarity_consistency(*given)
