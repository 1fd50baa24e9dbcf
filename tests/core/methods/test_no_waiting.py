"""The losses never wait for a device: on one that holds no numbers, whatever would look at some raises."""

from __future__ import annotations

import pytest
import torch
from toys import ToyDenoiser, conditions, inject, latents, network, part, plan

from domaingallery_core.data.parts import Batch
from domaingallery_core.generators import generator
from domaingallery_core.methods import draw


def on_meta(target, source, mask=None):
    """Return a batch of no numbers."""
    prompts = conditions().map(lambda condition: condition.to("meta"))
    return Batch(part(target, source, prompts=prompts), target.to("meta"), source.to("meta"), mask)


@pytest.mark.parametrize("settings", [{}, {"denoise_guidance": 3.0}, {"offset_noise": 0.1}], ids=str)
@pytest.mark.parametrize("method", ["erasure", "domaingallery", "personalization", "dreambooth"])
def test_losses_and_gradients_are_computed_without_a_look_at_them(method, settings):
    denoiser, chosen = ToyDenoiser(network().to("meta")), plan(method, **settings)
    step = {
        "domain": on_meta(latents(4, 1), latents(4, 2)),
        "subject": on_meta(latents(4, 3), latents(4, 4)),
    }
    noised = draw(step, denoiser.process, generator(0, "noise"), chosen.method.drawing)

    with inject(denoiser.network) as adapter:
        terms = chosen.method.terms(denoiser, adapter, noised)
        chosen.method.total(terms).backward()

        assert len(terms) >= 2 and all(p.grad is not None and p.grad.is_meta for p in adapter.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        float(terms["prior"].detach())


def test_masked_images_are_no_exception():
    denoiser, chosen = ToyDenoiser(network().to("meta")), plan("domaingallery")
    mask = torch.ones(4, 1, 4, 4, device="meta")
    step = {"domain": on_meta(latents(4, 1), latents(4, 2), mask)}
    noised = draw(step, denoiser.process, generator(0, "noise"), chosen.method.drawing)

    with inject(denoiser.network) as adapter:
        assert chosen.method.total(chosen.method.terms(denoiser, adapter, noised)).is_meta
