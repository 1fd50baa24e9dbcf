"""What is trained is one class: here, a bias vector on the output of a network."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from toys import CHANNELS, ToyDenoiser, inputs, latents, network, part, plan

from domaingallery_core.files.writing import read_tensors, save_tensors
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.trainable import Trainable


class Bias:
    """Add a vector to what a module gives."""

    def __init__(self, module: nn.Module) -> None:
        self.roots = (module,)
        self.vector = nn.Parameter(torch.zeros(CHANNELS))
        self._off = 0
        self.hook = module.register_forward_hook(self._added)

    def _added(self, module, given, out):
        return out if self._off else out + self.vector[:, None, None]

    def named_parameters(self):
        return {"bias": self.vector}

    @contextmanager
    def off(self):
        self._off += 1
        try:
            yield
        finally:
            self._off -= 1

    def state_dict(self):
        return {"bias": self.vector.detach().clone()}

    def load(self, state):
        with torch.no_grad():
            self.vector.copy_(state["bias"])


def run(folder=None, on_step=None, steps=6):
    model = network()
    bias, settings = Bias(model), plan("domaingallery", steps=steps, ema=0.5)
    parts = [part(latents(5, 1), latents(6, 2))]
    identity = run_identity(bias, parts, settings, {})
    checkpoints = Checkpoints(folder, identity, every=1) if folder else None
    result = train(
        ToyDenoiser(model), bias, parts, settings, on_step, checkpoints=checkpoints,
        monitor=Monitor(preview_every=3, preview_steps=2, validate_every=3),
    )  # fmt: skip
    return result, bias, model


def test_a_run_knows_nothing_else_of_it():
    assert isinstance(Bias(network()), Trainable)


def test_it_is_trained_switched_off_and_drawn_with():
    result, bias, model = run()

    assert float(bias.vector.detach().abs().min()) > 0
    assert result.state_dict.keys() == {"bias"} and result.previews.keys() == {0, 3, 6}
    with bias.off():
        assert torch.equal(model(*inputs()), network()(*inputs()))
    assert not torch.equal(model(*inputs()), network()(*inputs()))
    assert not torch.equal(result.previews[0], result.previews[6])


def test_it_goes_on_to_the_same_bytes_and_is_saved(tmp_path):
    whole, _, _ = run()

    def stop(event):
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop)
    resumed, bias, _ = run(tmp_path / "run")
    save_tensors(tmp_path / "bias.safetensors", resumed.state_dict, {})
    bias.load(read_tensors(tmp_path / "bias.safetensors")[0])

    assert resumed.resumed == 4
    assert torch.equal(resumed.state_dict["bias"], whole.state_dict["bias"])
    assert torch.equal(bias.vector.detach(), whole.state_dict["bias"])
