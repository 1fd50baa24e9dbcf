"""What stands between the host's networks and a backward pass."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


@pytest.fixture
def autograd(nodes):
    return nodes("nodes.host.network.autograd")


def block(x, weight):
    """Write over what a norm has kept for its backward pass, as blocks of the host do."""
    x += F.layer_norm(x, x.shape[-1:]) @ weight
    x *= 2.0
    x -= F.layer_norm(x, x.shape[-1:])
    return x


def test_networks_that_write_over_what_they_have_read_get_the_same_values_and_gradients(autograd):
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = block(start @ weight, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        block(start @ weight, weight).sum().backward()

    with autograd.differentiable():
        found = block(start @ weight, weight)
        [gradient] = torch.autograd.grad(found.square().sum(), weight)

    assert torch.equal(found, expected)
    step = 1e-3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ends = [block(start @ w, w).square().sum() for w in (weight + step, weight - step)]
    torch.testing.assert_close((ends[0] - ends[1]) / 2, (gradient * step).sum(), rtol=1e-2, atol=1e-3)


def test_sums_keep_the_precision_of_what_is_added_to(autograd):
    narrow = torch.ones(2, dtype=torch.bfloat16, requires_grad=True) * 1

    with autograd.differentiable():
        narrow += torch.ones(2)

    assert narrow.dtype == torch.bfloat16


def test_without_gradients_sums_are_in_place(autograd):
    total = torch.zeros(2)
    before = total.data_ptr()

    with autograd.differentiable():
        total += 1

    assert total.data_ptr() == before


def test_everything_is_as_it_was_afterwards_also_after_an_error(autograd):
    kitchen = importlib.import_module("comfy_kitchen")
    sums = [getattr(Tensor, name) for name in autograd.IN_PLACE]
    kernels = [getattr(kitchen, name) for name in autograd.KERNELS]

    with pytest.raises(ZeroDivisionError), autograd.differentiable():
        assert [getattr(kitchen, name) for name in autograd.KERNELS] != kernels
        raise ZeroDivisionError

    assert [getattr(Tensor, name) for name in autograd.IN_PLACE] == sums
    assert [getattr(kitchen, name) for name in autograd.KERNELS] == kernels


@pytest.mark.parametrize("name", ["rms_rope", "rms_rope_split_half", "apply_rope"])
def test_fused_kernels_are_computed_plainly_to_the_same_values_and_with_gradients(autograd, name):
    kitchen, generator = importlib.import_module("comfy_kitchen"), torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 5, 8, generator=generator).requires_grad_() for _ in range(2))
    turns, scale = torch.randn(1, 1, 5, 4, 2, 2, generator=generator), torch.rand(8, generator=generator)
    more = (scale, scale, 1e-6) if name.startswith("rms") else ()
    with torch.no_grad():
        expected = getattr(kitchen, name)(q, k, turns, *more)

    with autograd.differentiable():
        found = getattr(kitchen, name)(q, k, turns, *more)
        gradients = torch.autograd.grad(sum(each.square().sum() for each in found), (q, k))

    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
