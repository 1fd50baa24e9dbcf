"""What is counted of a forward pass is what autograd keeps of one."""

from __future__ import annotations

import gc
import weakref
from itertools import chain

import pytest
import torch
from torch import nn
from toys import inputs, network

from domaingallery_core.memory.blocks import Blocks
from domaingallery_core.memory.kept import NotCounted, counting

SETS = [frozenset(), frozenset({0}), frozenset({1}), frozenset({0, 1})]


def model():
    """Return a network with layers that learn, and its blocks."""
    found = network()
    found.attn1.to_q.weight.requires_grad_()
    found.attn2.to_out[0].weight.requires_grad_()
    return found, Blocks([found.attn1, found.attn2])


def counted(found, blocks):
    with blocks.in_place(), counting(blocks, found.parameters()) as kept:
        found(*inputs())
    return kept


def really_kept(found, blocks):
    """Return the bytes that autograd keeps of what is no weight, and let it go backward."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in chain(found.parameters(), found.buffers())}
    kept, bytes = [], {}

    def pack(tensor):
        kept.append(tensor)  # so that no other takes its place
        bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with blocks.in_place(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found(*inputs()).square().sum().backward()
    return sum(size for place, size in bytes.items() if place not in weights)


@pytest.mark.parametrize("again", SETS)
def test_it_is_what_autograd_keeps_whichever_blocks_are_computed_again(again):
    found, blocks = model()
    kept = counted(found, blocks)
    blocks.again = again

    # What the loss keeps is not of the network.
    loss = inputs()[0].nbytes
    assert kept.bytes(again) == really_kept(found, blocks) - loss


def test_the_peak_has_room_for_the_largest_block_in_its_backward_pass():
    found, blocks = model()
    kept = counted(found, blocks)
    alone = max(kept.bytes() - kept.bytes({block}) for block in blocks.all)

    assert kept.largest >= alone > 0
    assert kept.peak({0}) == kept.bytes({0}) + kept.largest


def test_nothing_is_kept_while_it_is_counted():
    seen = []
    layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, output: seen.append(weakref.ref(output)))
    blocks = Blocks([layers])

    with blocks.in_place(), counting(blocks, layers.parameters()) as kept:
        output = layers(torch.ones(2, 64))
        gc.collect()
        with pytest.raises(NotCounted):
            output.sum().backward()

    assert [each() is not None for each in seen] == [False, False, False, True]
    assert kept.bytes() == 4 * 2 * 64 * 4


def test_what_is_passed_over_counts_in_the_backward_pass_of_a_block_alone():
    layer, copy = nn.Linear(8, 8), torch.ones(8, 8)
    layer.forward = lambda x: nn.functional.linear(x, copy, layer.bias)
    blocks, x = Blocks([layer]), torch.ones(2, 8, requires_grad=True)

    def passed(tensor):
        return tensor.data_ptr() == copy.data_ptr()

    with blocks.in_place(), counting(blocks, layer.parameters(), passed) as kept:
        layer(x)

    assert kept.bytes() == 0
    assert kept.largest == copy.nbytes


def test_as_few_blocks_as_needed_are_chosen_the_largest_first():
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8)) for width in (16, 64, 32)
    )
    blocks = Blocks([*layers])
    with blocks.in_place(), counting(blocks, layers.parameters()) as kept:
        x = torch.ones(4, 8)
        for layer in layers:
            x = layer(x)

    def chosen(again):
        return kept.fewest(blocks, kept.peak(again))

    assert chosen(()) == frozenset()
    assert kept.fewest(blocks, kept.peak() - 1) == chosen({1}) == {1}
    assert kept.fewest(blocks, kept.peak({1}) - 1) == chosen({1, 2}) == {1, 2}
    assert kept.fewest(blocks, 0) == {0, 1, 2}
    blocks.always = frozenset({0})
    assert kept.fewest(blocks, kept.peak()) == {0}
