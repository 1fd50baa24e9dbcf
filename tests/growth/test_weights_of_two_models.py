"""A trainable is one file, also where it sits on two models: all weights of both, as differences to a base
that is never written to."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from toys import WIDTH, ToyDenoiser, conditions, latents, network, part, plan

from domaingallery_core.files.writing import read_tensors, save_tensors
from domaingallery_core.model.denoiser import Condition
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train


class Plus(nn.Module):
    """A weight and its difference, unless that is switched off."""

    def __init__(self, owner, shape):
        super().__init__()
        self.difference, self.owner = nn.Parameter(torch.zeros(shape)), [owner]

    def forward(self, base):
        return base + self.difference if self.owner[0].on else base


class Differences:
    def __init__(self, **models):
        self.roots, self.on, self.added = list(models.values()), True, {}
        for model, root in models.items():
            for name, module in list(root.named_modules()):
                if isinstance(module, nn.Linear):
                    plus = Plus(self, module.weight.shape)
                    parametrize.register_parametrization(module, "weight", plus)
                    self.added[f"{model}.{name}"] = plus.difference

    def named_parameters(self):
        return self.added

    @contextlib.contextmanager
    def off(self):
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def state_dict(self):
        return {name: difference.detach().clone() for name, difference in self.added.items()}

    def load(self, state):
        with torch.no_grad():
            for name, difference in self.added.items():
                difference.copy_(state[name])


def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(WIDTH, WIDTH)).requires_grad_(False)


def made():
    """Return a model, its text encoder, and what is trained of both."""
    model, text = network(), encoder()
    return model, text, Differences(model=model, text=text)


def run(folder=None, on_step=None):
    model, text, both = made()
    settings, given = plan("domaingallery", steps=6, ema=0.5), conditions()

    def encoded(prompt):
        return lambda: Condition({"context": text(prompt.tensors["context"])})

    prompts = replace(
        given, **{name: encoded(getattr(given, name)) for name in ("target", "source", "empty")}
    )
    parts = [part(latents(5, 1), latents(6, 2), prompts=prompts)]
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(folder, run_identity(both, parts, settings, {}), every=1)
    monitor = Monitor(preview_every=3, preview_steps=2, validate_every=3)
    denoiser = ToyDenoiser(model)
    result = train(denoiser, both, parts, settings, on_step, checkpoints=checkpoints, monitor=monitor)
    return result, model, text, both


def bases(model):
    """Return the weights that a model had before anything was put on it."""
    return {
        name.replace("parametrizations.weight.original", "weight"): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("difference")
    }


def test_all_weights_of_both_learn_and_their_bases_are_as_they_were():
    result, model, text, both = run()

    assert {name.partition(".")[0] for name in result.state_dict} == {"model", "text"}
    assert all(float(difference.abs().max()) > 0 for difference in result.state_dict.values())
    for trained, fresh in ((model, network()), (text, encoder())):
        assert all(torch.equal(bases(trained)[name], tensor) for name, tensor in fresh.state_dict().items())
    with both.off():
        given = torch.ones(1, 2, WIDTH)
        assert torch.equal(text(given), encoder()(given))
    assert result.validation[0] != result.validation[6]


def test_it_goes_on_to_the_same_bytes_and_is_saved(tmp_path):
    whole, *_ = run()

    def stop(event):
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop)
    resumed, *_ = run(tmp_path / "run")
    path = tmp_path / "both.safetensors"
    save_tensors(path, resumed.state_dict, {})
    *_, other = made()
    other.load(read_tensors(path)[0])

    assert resumed.resumed == 4
    for state in (resumed.state_dict, other.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict.items())
