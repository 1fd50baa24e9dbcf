"""Recurrent denoising is DDIM from one timestep to the next, written out."""

from __future__ import annotations

import pytest
import torch
from toys import ToyDenoiser, conditions, latents, network

from domaingallery_core.methods.similarity import recurrent_denoise, recurrent_timesteps


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize(("timestep", "steps"), [(600, 5), (600, 2), (2, 5), (300, 1)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_step_goes_on_from_where_the_one_before_led(kind, timestep, steps, guidance):
    denoiser, prompts = ToyDenoiser(network(), kind), conditions()
    x = given = latents(3, 1)

    found = recurrent_denoise(
        denoiser, given, timestep, prompts.target, steps=steps, guidance=guidance, empty=prompts.empty
    )

    timesteps = recurrent_timesteps(timestep, steps)
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        sigma = denoiser.process.sigma(now, x)
        x0 = denoiser(x, sigma, prompts.target.expand(3))
        if guidance != 1:
            uncond = denoiser(x, sigma, prompts.empty.expand(3))
            x0 = uncond + guidance * (x0 - uncond)
        if following is not None:
            d = (x - x0) / float(sigma[0])
            x = x0 + float(denoiser.process.sigmas[following]) * d
    torch.testing.assert_close(found, x0, rtol=1e-4, atol=1e-4)
