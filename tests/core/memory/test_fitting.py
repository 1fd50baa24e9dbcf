"""A run is tried before it and takes less where memory runs out; what it learns is the same."""

from __future__ import annotations

import math

import pytest
import torch
import toys
from toys import ToyDenoiser, latents, network, part

from domaingallery_core.errors import OutOfMemory, TrainingError
from domaingallery_core.generators import generator
from domaingallery_core.memory.blocks import Blocks
from domaingallery_core.memory.fitting import WORTH, Fitting, out_of_memory
from domaingallery_core.run import trainer
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.adapters import Adapter

IMAGES = part(latents(5, 1), latents(12, 2))
PLENTY, NOTHING = 2**40, 0


class Run:
    """Train a small network by a plan of a few steps.

    Attributes:
        rows: those of each evaluation.
        told: the estimates.
        blocks: those of the network, as the run left them.
    """

    def __init__(self, free=PLENTY, *, chooses=True, fail=None, fitted=True, steps=3, **changes):
        model = network()
        settings = toys.plan("domaingallery", **{"steps": steps} | changes)
        self.blocks, self.told = Blocks([model.attn1, model.attn2]), []
        self.denoiser = ToyDenoiser(model)
        fitting = (
            Fitting(self.blocks, lambda: free, chooses=chooses, told=self.told.append) if fitted else None
        )
        if fail is not None:
            model.attn2.register_forward_hook(fail)
        with (
            Adapter.inject(model, settings.adapter, generator(settings.seed, "adapter")) as adapter,
            self.blocks.in_place(),
        ):
            self.result = train(
                self.denoiser, adapter, [IMAGES], settings, fitting=fitting if fitted else None
            )
        self.rows = self.denoiser.rows


def same(one, other):
    states = one.result.state_dict, other.result.state_dict
    return one.result.losses == other.result.losses and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


class Failing:
    """Fail with an error in some calls, counted from 1, of those with more rows than some."""

    def __init__(self, *calls, error=torch.OutOfMemoryError, rows=0):
        self.calls, self.error, self.rows, self.called = calls, error, rows, 0

    def __call__(self, module, given, output):
        if output.shape[0] > self.rows:
            self.called += 1
            if not self.calls or self.called in self.calls:
                raise self.error("out of memory")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("steps", [3, WORTH])
def test_a_trial_changes_nothing_of_a_run(steps, dropout):
    changes = dict(steps=steps, dropout=dropout, denoise_steps=2)
    state = torch.get_rng_state()
    plain = Run(fitted=False, **changes)
    tried, cramped = Run(**changes), Run(NOTHING, **changes)

    assert same(plain, tried) and same(plain, cramped)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(tried.blocks.again), len(cramped.blocks.again)) == (0, 2)


@pytest.mark.parametrize("chooses", [True, False])
@pytest.mark.parametrize("steps", [WORTH - 1, WORTH])
def test_a_run_of_few_steps_is_not_tried_beyond_what_the_choice_of_blocks_takes(steps, chooses):
    plain = Run(fitted=False, steps=steps, denoise_steps=1)
    run = Run(steps=steps, chooses=chooses, denoise_steps=1)

    step = len(plain.rows) // steps
    tried = steps >= WORTH
    assert len(run.rows) - len(plain.rows) == step * (tried + (chooses or tried))
    assert [estimate.seconds is not None for estimate in run.told] == [tried] * (chooses or tried)


def test_an_estimate_says_what_a_step_takes():
    """And what it would take with all blocks computed again, or none."""
    [estimate] = Run(steps=WORTH, denoise_steps=1).told
    [cramped] = Run(NOTHING, steps=WORTH, denoise_steps=1).told

    assert estimate.activations == estimate.plain == cramped.plain
    assert cramped.activations == cramped.least == estimate.least < estimate.plain
    assert (estimate.again, cramped.again, estimate.blocks, estimate.steps) == (0, 2, 2, WORTH)
    assert estimate.seconds > 0 and estimate.row > 0
    weights = sum(tensor.numel() for name, tensor in Run().result.state_dict.items() if "lora" in name)
    assert estimate.learning == 3 * 4 * weights
    assert estimate.needed == estimate.activations + estimate.learning


def test_as_few_blocks_as_fit_are_computed_again():
    [estimate] = Run(steps=WORTH, denoise_steps=1).told
    one_more = (estimate.activations + estimate.learning) / 0.85

    assert len(Run(math.ceil(one_more), denoise_steps=1).blocks.again) == 0
    assert len(Run(math.floor(one_more) - 2, denoise_steps=1).blocks.again) == 1


@pytest.mark.parametrize("call", range(1, 30, 5))
def test_a_step_whose_memory_runs_out_is_done_again_to_the_same_bytes(caplog, call):
    """In the trial, in a forward pass, or where a block is computed again."""
    changes = dict(dropout=0.5, denoise_steps=2, accumulation=2)
    plain = Run(fitted=False, fail=(never := Failing(0)), **changes)
    run = Run(fail=Failing(call), **changes)

    assert same(plain, run)
    counted = never.called // 6
    assert len(run.blocks.again) == 2 or call <= counted
    assert ("all blocks are computed again" in caplog.text) == (call > counted)


@pytest.mark.parametrize("later", [1, 3, 6])
def test_a_trial_whose_memory_runs_out_is_tried_with_less(later):
    changes = dict(steps=WORTH, denoise_steps=2)
    plain = Run(fitted=False, fail=(never := Failing(0)), **changes)
    run = Run(fail=Failing(never.called // WORTH + later), **changes)

    assert same(plain, run)
    assert run.told[0].seconds is not None and run.told[0].again == len(run.blocks.again) == 2


def test_memory_that_runs_out_in_the_backward_pass_does_not_double_a_gradient(monkeypatch):
    plain, calls = Run(fitted=False, accumulation=2), []
    backward = torch.Tensor.backward

    def failing(loss, *given):
        backward(loss, *given)
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.Tensor, "backward", failing)

    assert same(plain, Run(accumulation=2))


def test_then_fewer_rows_are_evaluated_at_once(caplog):
    plain = Run(fitted=False, denoise_steps=1)
    run = Run(chooses=False, fail=Failing(rows=4), denoise_steps=1)

    assert max(plain.rows) == 12 and max(run.rows[-10:]) <= 4
    assert "at most 6 images are evaluated at once" in caplog.text
    assert "at most 3 images are evaluated at once from now on, in place of 6; the last digits" in caplog.text
    for name, value in plain.result.state_dict.items():
        torch.testing.assert_close(run.result.state_dict[name], value, rtol=1e-3, atol=1e-6)


def test_where_nothing_helps_the_error_passes_and_what_is_trained_is_as_before():
    model, state = network(), {}
    model.attn2.register_forward_hook(Failing())
    settings = toys.plan("domaingallery", steps=3)
    blocks = Blocks([model.attn1, model.attn2])
    with Adapter.inject(model, settings.adapter, generator(0, "adapter")) as adapter, blocks.in_place():
        state = adapter.state_dict()
        with pytest.raises(torch.OutOfMemoryError):
            train(
                ToyDenoiser(model), adapter, [IMAGES], settings,
                fitting=Fitting(blocks, lambda: PLENTY, chooses=True),
            )  # fmt: skip
        assert all(torch.equal(value, state[name]) for name, value in adapter.state_dict().items())
        assert all(p.grad is None for p in adapter.parameters())


@pytest.mark.parametrize("error", [ValueError, TrainingError, KeyboardInterrupt])
def test_other_errors_end_the_run(error):
    with pytest.raises(error):
        Run(fail=Failing(20, error=error))


def test_memory_that_runs_out_while_weights_change_ends_the_run(monkeypatch):
    """Half of them may have moved."""
    step = torch.optim.AdamW.step

    def failing(optimizer, *given):
        step(optimizer, *given)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", failing)

    with pytest.raises(torch.OutOfMemoryError):
        Run()


def test_the_largest_images_are_tried():
    small, large = part(latents(5, 1), latents(5, 2)), part(latents(5, 1), latents(5, 2))
    large = large.map(lambda tensor: torch.cat([tensor, tensor], dim=-1))

    assert trainer.Trial.__module__ == "domaingallery_core.run.trial"
    from domaingallery_core.run.trial import largest

    assert largest([small, large, small]) == [large]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (OutOfMemory("said"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_every_device_are_known(error, expected):
    assert out_of_memory(error) == expected
