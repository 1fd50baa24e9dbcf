"""A prompt that learns is one file: here, the vector of a new word, looked at anew in each step."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import WIDTH, ToyDenoiser, conditions, latents, network, part, plan

from domaingallery_core.files.writing import save_tensors
from domaingallery_core.model.denoiser import Condition
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train


class Word(nn.Module):
    """The vector of one word; nothing of the model learns."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(WIDTH))
        self.roots = [self]
        self.known = True

    def named_parameters(self, *_, **__):
        return {"word": self.vector}

    @contextlib.contextmanager
    def off(self):
        self.known = False
        try:
            yield
        finally:
            self.known = True

    def state_dict(self):
        return {"word": self.vector.detach().clone()}

    def load(self, state):
        with torch.no_grad():
            self.vector.copy_(state["word"])

    def prompt(self, of: Condition):
        """Return a prompt whose second word is this one."""

        def now() -> Condition:
            context = of.tensors["context"].clone()
            if self.known:
                context[:, 1] = context[:, 1] + self.vector
            return Condition({"context": context})

        return now


def run(folder=None, on_step=None, method="domaingallery"):
    word, settings = Word(), plan(method, steps=6)
    prompts = conditions()
    prompts = replace(prompts, target=word.prompt(prompts.target))
    parts = [part(latents(5, 1), latents(6, 2), prompts=prompts)]
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(folder, run_identity(word, parts, settings, {}), every=1)
    monitor = Monitor(preview_every=3, preview_steps=2, validate_every=3)
    model = network()
    result = train(
        ToyDenoiser(model), word, parts, settings, on_step, checkpoints=checkpoints, monitor=monitor
    )
    return result, model


@pytest.mark.parametrize("method", ["plain", "erasure", "domaingallery"])
def test_it_learns_under_every_method_and_the_model_does_not(method):
    result, model = run(method=method)

    assert float(result.state_dict["word"].abs().min()) > 0
    assert all(
        torch.equal(p, other) for p, other in zip(model.parameters(), network().parameters(), strict=True)
    )


def test_it_is_looked_at_with_what_it_has_learned():
    result, _ = run()

    assert result.validation[0] != result.validation[6]
    assert not torch.equal(result.previews[0], result.previews[6])


def test_it_goes_on_to_the_same_bytes_and_is_saved(tmp_path):
    whole, _ = run()

    def stop(event):
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop)
    resumed, _ = run(tmp_path / "run")
    path = tmp_path / "word.safetensors"
    save_tensors(path, resumed.state_dict, {})

    assert resumed.resumed == 4 and path.exists()
    assert torch.equal(resumed.state_dict["word"], whole.state_dict["word"])
