"""Learning rates, accumulated gradients, averages, Min-SNR weights and 8-bit moments."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from killed_run import PLAN, run
from torch import nn
from toys import WIDTH, but, latents, part

from domaingallery_core.data.parts import Batch
from domaingallery_core.errors import InputError
from domaingallery_core.methods import MethodSettings, noised_batch, objectives
from domaingallery_core.model.process import Process
from domaingallery_core.run import trainer
from domaingallery_core.run.moving_average import MovingAverage
from domaingallery_core.run.optimizers import OPTIMIZERS, learning_rate, make_optimizer
from domaingallery_core.run.plan import TrainingPlan

SIMPLE = TrainingPlan.of(method="plain", steps=6, learning_rate=1e-2, batch_size=4, weights=dict(prior=0))


def rates(**changes):
    plan = but(SIMPLE, **{"steps": 10, "learning_rate": 2.0} | changes)
    return [round(learning_rate(plan.optimizer, step), 6) for step in range(1, 11)]


def test_learning_rates_follow_their_schedule():
    assert rates() == [2.0] * 10
    assert rates(schedule="linear") == [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates(warmup_steps=4) == [0.5, 1.0, 1.5, *[2.0] * 7]
    cosine = rates(schedule="cosine", warmup_steps=2)
    assert cosine[:3] == [1.0, 2.0, 2.0]
    assert cosine[4] == pytest.approx(1 + math.cos(math.pi / 4), abs=1e-6)
    assert cosine[6] == pytest.approx(1 + math.cos(math.pi / 2))
    assert cosine[2:] == sorted(cosine[2:], reverse=True) and cosine[-1] > 0
    assert rates(warmup_steps=10, schedule="linear") == [round(0.2 * step, 6) for step in range(1, 11)]


def test_each_step_takes_and_tells_its_learning_rate():
    events, plan = [], but(SIMPLE, schedule="linear", warmup_steps=2)

    run(plan, on_step=events.append)

    assert [event.learning_rate for event in events] == [
        learning_rate(plan.optimizer, step) for step in range(1, 7)
    ]
    with_rates, constant = run(plan), run(SIMPLE)
    assert any(not torch.equal(v, constant.state_dict[k]) for k, v in with_rates.state_dict.items())


def test_two_half_batches_are_one_batch(monkeypatch):
    """With the noise of both halves, accumulated gradients give the step of the whole batch."""
    images, noise = latents(4, 1), latents(4, 2)

    def whole_or_half(parts, batch_size, generator):
        while True:
            for rows in images.split(batch_size):
                yield {"domain": Batch(parts[0], rows)}

    def fixed_noise(step, process, generator, offset_noise):
        batch = step["domain"]
        own = [int((images == image).flatten(1).all(1).nonzero()) for image in batch.target]
        pair = batch.target, noise[own]
        return {"domain": noised_batch(process, 500, batch.part.prompts, target=pair)}

    monkeypatch.setattr(trainer, "batches", whole_or_half)
    monkeypatch.setattr(trainer, "draw", fixed_noise)
    parts = [part(images)]
    whole = run(SIMPLE, parts=parts)
    halves = run(but(SIMPLE, batch_size=2, accumulation=2), parts=parts)

    assert halves.losses["total"] == pytest.approx(whole.losses["total"], rel=1e-4)
    for name, weight in whole.state_dict.items():
        torch.testing.assert_close(halves.state_dict[name], weight, rtol=1e-3, atol=1e-5)


def test_the_average_is_that_of_the_steps_and_leaves_training_alone():
    plain, averaged = run(SIMPLE), run(but(SIMPLE, ema=0.5))
    parameters = {"w": nn.Parameter(torch.zeros(2))}
    average = MovingAverage(parameters, 0.5)
    expected = 0.0
    for n in range(1, 20):
        parameters["w"].data.fill_(float(n))
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n

    assert plain.losses == averaged.losses
    assert any(not torch.equal(v, averaged.state_dict[k]) for k, v in plain.state_dict.items())
    with average.applied():
        assert parameters["w"].tolist() == pytest.approx([expected] * 2)
    assert parameters["w"].tolist() == [19.0, 19.0]


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
def test_min_snr_weighs_every_family_as_its_x0(kind):
    """The error of x0 that an error of the prediction makes has the weight min(SNR, gamma)."""
    process = (
        Process("flow", torch.linspace(0.001, 1, 1000)) if kind == "flow" else Process.scaled_linear(kind)
    )
    x0, noise = latents(1, 1).double(), latents(1, 2).double()
    for timestep in (3, 200, 500, 900):
        sigma = process.sigma(timestep, x0)
        s = float(sigma)
        snr = ((1 - s) / s) ** 2 if kind == "flow" else 1 / s**2
        x = process.noised(x0, noise, sigma)
        wrong = x0 + 0.01
        of_prediction = objectives.reconstruction(
            process.prediction(x, wrong, sigma), process.target(x0, noise, sigma)
        )
        weight = objectives.min_snr_weight(process, timestep, 5.0)
        assert float(weight * of_prediction) == pytest.approx(min(snr, 5.0) * 0.01**2, rel=1e-6)


def test_min_snr_changes_the_terms_of_eq_1_alone():
    terms = {name: torch.tensor(1.0) for name in ("target", "prior", "disentanglement")}

    settings = MethodSettings(name="domaingallery", weights={"prior": 2})
    assert float(settings.total(terms, regression=0.5)) == 0.5 + 1.0 + 10
    plain, weighted = run(SIMPLE), run(but(SIMPLE, min_snr=1.0))
    assert plain.losses["target"][0] == weighted.losses["target"][0]
    assert plain.losses["total"][0] > weighted.losses["total"][0]


@pytest.mark.parametrize("name", ["adamw8bit", "prodigy", "adamw_schedulefree"])
def test_without_its_package_an_optimizer_is_refused_before_the_first_step(monkeypatch, name):
    package = OPTIMIZERS[name].package
    monkeypatch.setitem(sys.modules, package, None)
    events = []

    with pytest.raises(InputError, match=f"pip install {package}\\), or choose 'adamw'"):
        run(but(SIMPLE, optimizer=name), on_step=events.append)

    assert not events


def test_a_package_that_does_not_work_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", ModuleType("prodigyopt"))

    with pytest.raises(InputError, match=r"a working package prodigyopt .* has no attribute 'Prodigy'"):
        run(but(SIMPLE, optimizer="prodigy"))


def test_the_optimizer_is_that_of_the_released_code_and_its_quick_form():
    weights = [nn.Parameter(torch.ones(2))]

    optimizer = make_optimizer(weights, but(SIMPLE, learning_rate=0.5, weight_decay=0.25).optimizer)

    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["params"] == weights
    known = ("lr", "betas", "eps", "weight_decay", "fused", "amsgrad", "maximize")
    found = {name: optimizer.defaults[name] for name in known}
    assert found == {
        "lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.25, "fused": True, "amsgrad": False,
        "maximize": False,
    }  # fmt: skip


class AdamW8bit(torch.optim.Optimizer):
    """Move weights by their mean gradient. As that of bitsandbytes it counts steps in an int, keeps other
    moments of some weights than of others, some in another dtype than the weights, and hides these in its
    state_dict.
    """

    def __init__(self, parameters, **options):
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            assert group["betas"] == (0.9, 0.999) and group["weight_decay"] == PLAN.optimizer.weight_decay
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                mean = state.get("mean", torch.zeros_like(p, dtype=torch.float64))
                state["mean"] = mean * (1 - 1 / state["step"]) + p.grad / state["step"]
                if p.shape[0] == WIDTH:
                    state["largest"] = state["mean"].abs().max()
                p.sub_((group["lr"] * state["mean"]).float())

    def state_dict(self):
        found = super().state_dict()
        found["state"] = {index: {"hidden": dict(each)} for index, each in found["state"].items()}
        return found


def test_with_bitsandbytes_its_optimizer_trains_and_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    module = ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    plan = but(SIMPLE, optimizer="adamw8bit", learning_rate=1.0)

    def cancel(event):
        if event.step == 4:
            raise KeyboardInterrupt

    expected = run(plan)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, cancel)
    result = run(plan, tmp_path)

    assert result.resumed == 4 and result.losses == expected.losses
    assert all(torch.equal(v, result.state_dict[k]) for k, v in expected.state_dict.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "sgd"},
            "optimizer to be one of adamw, adamw8bit, adafactor, prodigy, adamw_schedulefree, got 'sgd'",
        ),
        ({"schedule": "step"}, "one of constant, linear, cosine, got 'step'"),
        ({"accumulation": 0}, "accumulation to be a whole number, at least 1"),
        ({"warmup_steps": 7}, "warmup_steps to be a whole number, at least 0 and at most 6, got 7"),
        ({"optimizer": "adamw_schedulefree", "schedule": "cosine"}, "schedule constant and ema 0"),
        ({"optimizer": "adamw_schedulefree", "ema": 0.9}, "got 'constant' and 0.9"),
        ({"ema": 1.0}, "ema to be a finite number, at least 0 and at most 0.99999"),
        ({"min_snr": -1.0}, "min_snr"),
        ({"precision": "float16"}, "precision to be one of"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        but(SIMPLE, **changes)


def test_without_an_average_nothing_is_kept_for_one():
    weights = {"a": nn.Parameter(torch.ones(2))}

    assert MovingAverage(weights, 0.0).values == {}
    assert MovingAverage(weights, 0.5).values.keys() == {"a"}
