"""Noising, predictions and DDIM in sigma terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import latents

from domaingallery_core.model.process import Process


def processes():
    flow = Process("flow", torch.linspace(0.001, 1, 1000, dtype=torch.float64))
    return [Process.scaled_linear("epsilon"), Process.scaled_linear("v"), flow]


@pytest.mark.parametrize("process", processes(), ids=lambda process: process.kind)
@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_the_prediction_at_the_true_x0_is_the_target(process, timestep):
    x0, noise = latents(3, 1).double(), latents(3, 2).double()
    sigma = process.sigma(timestep, x0)

    x = process.noised(x0, noise, sigma)

    torch.testing.assert_close(process.prediction(x, x0, sigma), process.target(x0, noise, sigma))


@pytest.mark.parametrize("process", processes(), ids=lambda process: process.kind)
def test_a_ddim_step_with_the_true_x0_lands_on_the_noised_latents(process):
    x0, noise = latents(3, 1).double(), latents(3, 2).double()
    x = process.noised(x0, noise, process.sigma(700, x0))

    stepped = process.ddim_noised(*process.ddim_prediction(x, x0, 700), 200)

    torch.testing.assert_close(
        stepped, process.noised(x0, noise, process.sigma(200, x0)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_a_ddim_step_has_the_rounded_coefficients_of_the_released_code(kind):
    """There, a sample is x / sqrt(1 + sigma^2), and abar and the roots are float32."""
    process = Process.scaled_linear(kind)
    x0, wrong = latents(3, 1).double(), latents(3, 3).double()
    x = process.noised(x0, latents(3, 2).double(), process.sigma(700, x0))
    out = process.prediction(x, wrong, process.sigma(700, x0))

    def coefficients(timestep):
        square = 1 / (1 + process.sigmas[timestep].numpy() ** 2)
        abar = square.astype(np.float32)  # torch rounds roots differently on different machines
        return float(np.sqrt(square)), float(np.sqrt(abar)), float(np.sqrt(np.float32(1) - abar))

    scale, a, b = coefficients(700)
    sample = x * scale
    expected, noise = (sample - b * out) / a, out
    if kind == "v":
        expected, noise = a * sample - b * out, a * out + b * sample
    found, d = process.ddim_prediction(x, wrong, 700)
    torch.testing.assert_close((found, d), (expected, noise), rtol=1e-12, atol=1e-12)
    assert 1e-9 < float((found - wrong).abs().max()) < 1e-4, "the rounding shows"

    scale, a, b = coefficients(200)
    stepped = process.ddim_noised(found, d, 200)
    torch.testing.assert_close(stepped, (a * found + b * d) / scale, rtol=1e-12, atol=1e-12)


def test_a_step_of_a_flow_is_exact():
    process = processes()[2]
    x0, x = latents(3, 1).double(), latents(3, 2).double()

    found, d = process.ddim_prediction(x, x0, 700)

    assert torch.equal(found, x0)
    torch.testing.assert_close(d, (x - x0) / process.sigmas[700], rtol=1e-14, atol=0)
    expected = x0 + process.sigmas[200] * d
    torch.testing.assert_close(process.ddim_noised(x0, d, 200), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("process", processes(), ids=lambda process: process.kind)
def test_every_timestep_is_found_again_from_its_sigma(process):
    sigmas = process.sigmas.float()

    assert process.timestep(sigmas).tolist() == list(range(1000))
    assert process.timestep(sigmas[700]).tolist() == 700
    coarse = sigmas.bfloat16()
    assert torch.equal(process.timestep(coarse), process.timestep(coarse.double()))


def test_the_clean_input_is_x0_after_the_scaling_of_the_network():
    x0 = latents(2, 1).double()
    for process in processes():
        x, sigma = process.clean_input(x0)

        scale = 1.0 if process.kind == "flow" else (1 + sigma[:, None, None, None] ** 2).sqrt()
        torch.testing.assert_close(x / scale, x0)
        assert process.timestep(sigma).tolist() == [0, 0]


@pytest.mark.parametrize("process", processes(), ids=lambda process: process.kind)
def test_latents_keep_their_precision(process):
    """Noise levels have at least that of float32, whatever the latents have."""
    x0, noise = latents(2, 1).half(), latents(2, 2).half()
    sigma = process.sigma(500, x0)

    x = process.noised(x0, noise, sigma)

    assert sigma.dtype == torch.float32
    assert torch.equal(process.sigma(500, x0.double()), process.sigmas[[500, 500]])
    for found in (x, process.prediction(x, x0, sigma), process.target(x0, noise, sigma)):
        assert found.dtype == torch.float16


def test_the_schedule_is_the_one_of_stable_diffusion():
    sigmas = Process.scaled_linear("epsilon").sigmas
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2

    torch.testing.assert_close(1 / (1 + sigmas**2), (1 - betas).cumprod(0).double(), rtol=2e-7, atol=0)

    assert float(sigmas[0]) == pytest.approx(0.0292, abs=1e-4)
    assert float(sigmas[-1]) == pytest.approx(14.6146, abs=1e-4)


def test_two_noise_levels_from_0_are_enough():
    process = Process("flow", torch.tensor([0.0, 1.0]))

    assert process.timestep(torch.tensor([0.0, 0.9])).tolist() == [0, 1]
    assert process.sigmas.dtype == torch.float64


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0], [2.0, 1.0], [-1.0, 1.0], [[1.0, 2.0]]])
def test_sigmas_that_do_not_ascend_are_refused(sigmas):
    with pytest.raises(ValueError, match="Expected sigmas"):
        Process("epsilon", torch.tensor(sigmas))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'x0'"):
        Process("x0", torch.tensor([1.0, 2.0]))
