"""A method is one file: here, one that learns the domain and keeps predictions under another prompt small."""

from __future__ import annotations

import pytest
import torch
from toys import ToyDenoiser, inject, latents, load_lora, network, part, plan

from domaingallery_core.files.lora import save_lora
from domaingallery_core.methods import METHODS, Method, Term
from domaingallery_core.methods.terms import TARGET
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train

CALM = Term(name="calm", reads="source", weight=0.5)


class Calm(Method):
    """Eq. 1 on target images, and the size of what is predicted for source images under the same prompt."""

    name = "calm"
    terms = (TARGET, CALM)
    steps, learning_rate = 6, 1e-2

    def losses(self, ask, noised, settings):
        domain = noised["domain"]
        target = ask(domain.target, domain.prompts.target)
        terms = {"target": target.reconstruction}
        if settings.uses("calm"):
            source = ask(domain.source, domain.prompts.target)
            terms["calm"] = lambda: source.value.square().mean()
        return terms


del METHODS["calm"]  # a test adds it


@pytest.fixture(autouse=True)
def added():
    METHODS["calm"] = Calm()
    yield
    del METHODS["calm"]


def run(settings, folder=None, on_step=None):
    denoiser = ToyDenoiser(network())
    parts = [part(latents(5, 1), latents(6, 2))]
    with inject(denoiser.network, settings.adapter) as adapter:
        identity = run_identity(adapter, parts, settings, {})
        checkpoints = Checkpoints(folder, identity, every=1) if folder else None
        monitor = Monitor(preview_every=3, preview_steps=2)
        result = train(denoiser, adapter, parts, settings, on_step, checkpoints=checkpoints, monitor=monitor)
    return result, denoiser


def test_it_is_trained_and_drawn_with_and_each_evaluation_serves_both_terms():
    result, denoiser = run(plan("calm", steps=6))

    assert result.losses.keys() == {"target", "calm", "total"}
    assert result.losses["total"][0] == pytest.approx(
        result.losses["target"][0] + 0.5 * result.losses["calm"][0]
    )
    assert result.previews.keys() == {0, 3, 6}
    assert denoiser.rows.count(8) == 6  # four target and four source images at once, each step


def test_a_weight_of_zero_reads_no_source_images():
    settings = plan("calm", weights={"calm": 0})

    assert settings.method.reads("target") and not settings.method.reads("source")


def test_it_goes_on_to_the_same_bytes_and_is_saved(tmp_path):
    settings = plan("calm", steps=6)
    whole, _ = run(settings)

    def stop(event):
        if event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "run", stop)
    resumed, _ = run(settings, tmp_path / "run")
    path = save_lora(tmp_path / "calm.safetensors", resumed.state_dict, key_format="comfyui")

    assert resumed.resumed == 3
    assert all(torch.equal(tensor, whole.state_dict[name]) for name, tensor in resumed.state_dict.items())
    assert load_lora(path)[0].keys() == whole.state_dict.keys()
