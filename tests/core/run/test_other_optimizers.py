"""Optimizers of other packages, with the packages themselves: they learn, and go on to the same bytes."""

from __future__ import annotations

import pytest
import torch
from killed_run import run
from toys import but

from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.optimizers import averaged, default_rate, make_optimizer
from domaingallery_core.run.plan import TrainingPlan

OTHERS = {"adafactor": 1e-2, "prodigy": 1.0, "adamw_schedulefree": 1e-2}
PLAN = TrainingPlan.of(method="plain", steps=8, batch_size=4, weights=dict(prior=0))


def plan_of(name, **changes):
    return but(PLAN, optimizer=name, learning_rate=OTHERS[name], **changes)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, name):
    """What the optimizer has of each weight and of all together is in the checkpoint."""
    plan = plan_of(name, warmup_steps=2, accumulation=2)

    def cancel(event):
        if event.step in (1, 5):
            raise KeyboardInterrupt

    expected = run(plan)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path, cancel)
    result = run(plan, tmp_path)

    assert result.resumed == 5 and result.losses == expected.losses
    assert same(result.state_dict, expected.state_dict)


@pytest.mark.parametrize("name", OTHERS)
def test_looking_at_a_run_changes_nothing_of_it(name):
    plan = plan_of(name)

    watched = run(plan, monitor=Monitor(validate_every=1, preview_every=3, preview_steps=2, preview_cfg=1.0))

    assert len(watched.validation) == 9 and len(watched.previews) == 4
    assert same(watched.state_dict, run(plan).state_dict)


@pytest.mark.parametrize(
    ("name", "steps"), [("adafactor", 350), ("prodigy", 150), ("adamw_schedulefree", 50)]
)
def test_they_learn(name, steps):
    """The loss on fixed noise goes down; those that find out how far to go begin slowly."""
    watched = run(plan_of(name, steps=steps), monitor=Monitor(validate_every=steps))

    assert watched.validation[steps] < 0.9 * watched.validation[0]


def test_the_average_of_schedule_free_is_what_is_looked_at_and_kept():
    """While it trains, the weights are others, and they are these to the bit when it goes on."""
    parameters = [torch.nn.Parameter(torch.ones(5))]
    settings = plan_of("adamw_schedulefree").optimizer
    optimizer = make_optimizer(parameters, settings)
    for step in range(1, 8):
        parameters[0].grad = torch.linspace(-1, 1, 5) / step
        optimizer.step()
    moved = parameters[0].detach().clone()
    z = optimizer.state[parameters[0]]["z"]

    with averaged(optimizer, settings):
        average = parameters[0].detach().clone()

    torch.testing.assert_close(moved, 0.9 * average + 0.1 * z)  # y = beta x + (1 - beta) z
    assert not torch.equal(average, moved) and torch.equal(parameters[0], moved)
    optimizer.step()  # refused by the package, unless it is back where it trains


def test_weights_of_other_optimizers_are_left_as_they_are():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    settings = plan_of("prodigy").optimizer

    with averaged(make_optimizer(parameters, settings), settings):
        assert parameters[0].tolist() == [1.0, 1.0]


def test_prodigy_is_quiet_and_has_the_weight_decay_of_the_plan(capsys):
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], plan_of("prodigy").optimizer)

    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["lr"], group["decouple"]) == (1e-2, 1.0, True)
    assert group["use_bias_correction"] and group["safeguard_warmup"]
    assert capsys.readouterr().out == ""


def test_a_rate_of_an_optimizers_own_stands_for_the_methods():
    assert [default_rate(name, 5e-5) for name in ("adamw", "adamw_schedulefree", "sgd")] == [5e-5] * 3
    assert (default_rate("prodigy", 5e-5), default_rate("adafactor", 5e-5)) == (1.0, 1e-2)
