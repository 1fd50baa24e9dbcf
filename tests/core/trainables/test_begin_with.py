"""An adapter begins with one of another rank, scale, precision or shape of kernel, and adds the same."""

from __future__ import annotations

import re

import pytest
import torch
from toys import WIDTH, filled, inject, inputs, network

from domaingallery_core.errors import AdapterError
from domaingallery_core.trainables.adapter_settings import AdapterSettings


def exported(**config):
    """Return an adapter with random weights as loaders read it, and what the model gives with it."""
    model = network()
    with filled(inject(model, AdapterSettings(**config))) as adapter:
        return adapter.exported(adapter.state_dict()), model(*inputs())


def given_with(lora, **config):
    """Return what the model gives with an adapter that begins with another, and the adapter's state."""
    model = network()
    with inject(model, AdapterSettings(**config), seed=9) as adapter:
        adapter.begin_with(lora)
        return model(*inputs()), adapter.state_dict()


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(
    ("before", "now"),
    [((2, 2.0), (2, 2.0)), ((2, 3.0), (5, 5.0)), ((1, 0.5), (4, 2.0)), ((3, 6.0), (3, 1.0))],
)
def test_what_it_adds_is_the_same_at_another_rank_and_scale(kind, before, now):
    lora, expected = exported(kind=kind, rank=before[0], alpha=before[1])

    found, state = given_with(lora, kind=kind, rank=now[0], alpha=now[1])

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {float(state[name]) for name in state if name.endswith("alpha")} == {now[1]}
    if before == now and kind == "lora":
        assert all(torch.equal(state[name], tensor) for name, tensor in lora.items())


def test_rows_that_are_added_go_on_learning():
    """Both matrices of what is added would never move if both began at 0."""
    lora, _ = exported(rank=1, alpha=1.0)
    model = network()

    with inject(model, AdapterSettings(rank=3, alpha=3.0), seed=9) as adapter:
        adapter.begin_with(lora)
        model(*inputs()).square().sum().backward()
        weights = adapter.named_parameters()

        assert weights["attn1.to_q.lora_B.weight"].grad[:, 1:].any()
        assert weights["attn1.to_q.lora_A.weight"][1:].any()


def test_a_file_without_alphas_has_the_scale_1():
    lora, expected = exported(rank=2, alpha=2.0)

    found, _ = given_with(
        {name: t for name, t in lora.items() if not name.endswith("alpha")}, rank=2, alpha=8.0
    )

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_kernels_of_1_x_1_and_half_precision_are_taken():
    lora, expected = exported(rank=2, alpha=2.0)
    changed = {name: t.half() if t.ndim == 0 else t.half()[..., None, None] for name, t in lora.items()}

    found, state = given_with(changed, rank=4, alpha=4.0)

    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_layers_that_it_lacks_begin_anew():
    lora, _ = exported(rank=2, alpha=2.0)
    some = {name: tensor for name, tensor in lora.items() if name.startswith("attn2")}

    _, state = given_with(some, rank=2, alpha=2.0)

    assert all(torch.equal(state[name], tensor) for name, tensor in some.items())
    assert not state["attn1.to_q.lora_B.weight"].any() and state["attn1.to_q.lora_A.weight"].any()


def test_a_higher_rank_is_refused_and_nothing_changes():
    lora, _ = exported(rank=4)
    model = network()
    with inject(model, AdapterSettings(rank=2)) as adapter:
        before = adapter.state_dict()

        with pytest.raises(AdapterError, match=r"rank of at least 4 to go on with this LoRA, got 2\. Raise"):
            adapter.begin_with(lora)

        assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("lora_A.weight", (2, WIDTH + 1)),
        ("lora_A.weight", (2, WIDTH, 3, 3)),
        ("lora_A.weight", (0, WIDTH)),
        ("lora_A.weight", ()),
        ("lora_B.weight", (WIDTH + 1, 2)),
        ("lora_B.weight", (WIDTH, 1)),
    ],
)
def test_other_shapes_are_named(part, shape):
    lora, _ = exported(rank=2, alpha=2.0)
    lora[f"attn1.to_q.{part}"] = torch.ones(shape)

    with pytest.raises(AdapterError, match=rf"attn1\.to_q\.{re.escape(part)} is "):
        given_with(lora, rank=4, alpha=4.0)


def test_names_of_no_layer_and_other_kinds_are_refused():
    lora, _ = exported(rank=2, alpha=2.0)

    with pytest.raises(AdapterError, match=r"other\.lora_A\.weight is not part of the model"):
        given_with(lora | {"other.lora_A.weight": torch.ones(2, 2)}, rank=2, alpha=2.0)
    with pytest.raises(AdapterError, match="Expected a LoHa to go on with, got a LoRA"):
        given_with(lora, rank=2, alpha=2.0, kind="loha")


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_products_of_other_shapes_are_refused(kind):
    lora, _ = exported(kind=kind, rank=1, alpha=1.0)

    with pytest.raises(AdapterError, match="got one that differs"):
        given_with(lora, kind=kind, rank=2, alpha=2.0)
