"""What the benchmark of training is made of: programs in turns, and the network without its adapter."""

from __future__ import annotations

import pytest
import torch
from toys import ToyDenoiser, conditions, filled, inject, inputs, latents, network

from benchmarks.random_training import Recorded, bare
from benchmarks.released import run_in_turns


def test_two_programs_take_turns_and_are_ended_where_they_stand():
    said = []

    def program(name):
        def run(pause):
            try:
                for number in range(10):
                    said.append(f"{name}{number}")
                    pause()
            finally:
                said.append(f"{name} ended")

        return run

    took = run_in_turns(program("a"), program("b"), 2, iter(range(100)).__next__)

    assert said == ["a0", "b0", "a1", "b1", "a2", "b2", "a ended", "b ended"]
    assert took == (1, 1)


def test_what_a_program_raises_is_raised_and_the_other_is_ended():
    ended = []

    def good(pause):
        try:
            pause()
            pause()
        finally:
            ended.append(True)

    def bad(pause):
        pause()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_in_turns(good, bad, 2, lambda: 0.0)

    assert ended


def test_the_bare_network_is_the_frozen_one_with_a_gradient_and_the_adapter_comes_back():
    model = network()
    base = model(*inputs())
    with filled(inject(model)):
        on = model(*inputs())
        with bare(model):
            found = model(*inputs())
        with bare(model), torch.no_grad():
            frozen = model(*inputs())

        assert torch.equal(found, base) and found.requires_grad
        assert torch.equal(frozen, base) and not frozen.requires_grad
        assert torch.equal(model(*inputs()), on) and not torch.equal(on, base)


def test_what_was_evaluated_is_evaluated_again_in_the_same_modes():
    toy = ToyDenoiser(network())
    recorded, prompt = Recorded(toy), conditions().target
    x, sigma = latents(2, 1), torch.ones(2)
    with filled(inject(toy.network)):
        recorded(x, sigma, prompt.expand(2))
        with torch.no_grad():
            recorded(latents(3, 1), torch.ones(3), prompt.expand(3))
        recorded.features(x, sigma, prompt.expand(2))

        recorded.again(recorded.taken())

    assert toy.rows == [2, 3, 2, 3] and toy.with_gradient == [True, False, True, False]
    assert toy.of_features == 2 and recorded.taken() == []
