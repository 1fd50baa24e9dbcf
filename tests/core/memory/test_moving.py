"""Weights that come and go block by block compute the same, and are never all there at once."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from domaingallery_core.memory.blocks import Blocks
from domaingallery_core.memory.moving import Mover

COUNT, WIDTH = 6, 32
BLOCK = 2 * WIDTH * WIDTH * 4


class Counted(Mover):
    """Count the bytes of moved copies that are alive at once."""

    alive = most = 0

    def copied(self, tensor):
        found = super().copied(tensor)
        self.alive += found.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(found.untyped_storage(), self._gone, found.nbytes)
        return found

    def _gone(self, size):
        self.alive -= size


def stack_of_blocks():
    """Return blocks of frozen weights, one after the other."""
    generator = torch.Generator().manual_seed(0)
    blocks = nn.Sequential(
        *(
            nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.GELU(), nn.Linear(WIDTH, WIDTH, bias=False))
            for _ in range(COUNT)
        )
    )
    for weight in blocks.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator).requires_grad_(False)
    return blocks


def gradient(network):
    x = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH).requires_grad_()
    loss = network(x).square().sum()
    return loss, torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("ahead", [False, True])
def test_values_and_gradients_are_the_same_and_two_blocks_are_there_at_most(ahead):
    network = stack_of_blocks()
    expected = gradient(network)
    blocks, mover = Blocks([*network]), Counted([*network], torch.device("cpu"), ahead=ahead)
    blocks.again = blocks.all

    with mover.in_place(), blocks.in_place():
        found = [gradient(network) for _ in range(3)][-1]
    gc.collect()

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert mover.most == BLOCK * (2 if ahead else 1) < COUNT * BLOCK
    assert mover.alive == 0


def test_what_comes_next_is_learned_in_one_step():
    """Then nothing is moved in vain, forward or backward."""
    network = stack_of_blocks()
    blocks, mover = Blocks([*network]), Mover([*network], torch.device("cpu"), ahead=True)
    blocks.again, moved = blocks.all, []

    with mover.in_place(), blocks.in_place():
        for _ in range(4):
            before = mover.moved
            gradient(network)
            moved.append(mover.moved - before)

    assert moved[-1] == 2 * COUNT * BLOCK


def test_all_would_be_there_at_once_if_blocks_were_not_computed_again():
    network = stack_of_blocks()
    mover = Counted([*network], torch.device("cpu"))

    with mover.in_place():
        gradient(network)

    assert mover.most == COUNT * BLOCK


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt])
def test_the_weights_themselves_come_back_after_an_error(raised):
    network = stack_of_blocks()
    before = [*network.parameters()]

    def fail(*_):
        assert network[2][0].weight is not before[4]
        raise raised

    network[2][1].register_forward_hook(fail)
    mover = Counted([*network], torch.device("cpu"))
    with pytest.raises(raised), mover.in_place():
        gradient(network)

    assert all(now is was for now, was in zip(network.parameters(), before, strict=True))
    assert not any("forward" in block.__dict__ for block in network)
    gc.collect()
    assert mover.alive == 0
