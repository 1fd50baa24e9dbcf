"""Enhancement with what conditionings can carry: LoRA hooks, ControlNets, areas, masks, times, sizes."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.draw.drawing import alone, patched, predict
from tests.nodes.draw.formula import CFG, MODES, STRENGTH, base_of, close, compare, lora_hooks, with_values
from tests.nodes.tiny import conditioning, host_module, tiny_model, tiny_prompts

HALF = torch.zeros(1, 8, 8)
HALF[..., :4] = 1.0
AREA = {"area": (8, 4, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
MASK = {"mask": HALF, "mask_strength": 1.0, "set_area_to_bounds": False}


@pytest.mark.parametrize("where", ["positive", "base", "both"])
@pytest.mark.parametrize("mode", MODES)
def test_lora_hooks_of_single_conditionings(nodes, model, prompts, mode, where):
    """A LoRA that hangs on one conditioning acts on that one alone, and is gone afterwards."""
    hooks, patch = lora_hooks()
    plain = {"positive": prompts.target, "base": base_of(prompts, mode)}
    hooked = {name: with_values(cond, hooks=hooks) for name, cond in plain.items()}
    positive = hooked["positive"] if where != "base" else plain["positive"]
    base = hooked["base"] if where != "positive" else plain["base"]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    added, expected, rows, _ = compare(nodes, model, prompts, mode, positive, base=base)

    close(added, expected)
    other = alone(patch(model), plain["base"])
    close(alone(model, hooked["base"]), other)
    assert not torch.allclose(other, alone(model, plain["base"]), atol=1e-3)
    assert sorted(rows) == [1, 2]
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def test_a_lora_of_the_base_takes_the_model_whose_weights_can_be_patched(nodes, model, prompts):
    """The host has a second MODEL for this where it loads weights as they are needed."""
    second, loading = model.clone(), model.clone()
    second.model_options["second"] = True
    loading.is_dynamic, loading.get_non_dynamic_delegate = lambda: True, second.clone
    hooks, _ = lora_hooks()

    taken = [
        "second" in patched(nodes, loading, mode="VN-N", enhancement=STRENGTH, base=base).model_options
        for base in (prompts.source, with_values(prompts.source, hooks=hooks))
    ]

    assert taken == [False, True]


def thin_control(strength=1.0):
    """Return a ControlNet that adds a constant to the middle block."""
    base = host_module("comfy.controlnet").ControlBase

    class Thin(base):
        calls: list[int]

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            self.calls.append(x_noisy.shape[0])
            hint = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4) * strength
            return {"middle": [hint.expand(len(x_noisy), 64, 4, 4)], "output": []}

    thin = Thin()
    thin.calls = []
    return thin


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("apply", ["advanced", "to the positive"])
def test_controlnet(nodes, model, prompts, mode, apply):
    """The base gets the ControlNet of what it is compared with, so the difference is one of words alone."""
    control = thin_control()
    values = {"control": control, "control_apply_to_uncond": apply != "advanced"}
    positive = with_values(prompts.target, **values)
    negative = with_values(prompts.empty, **values) if apply == "advanced" else prompts.empty
    base = base_of(prompts, mode)

    def with_control(cond):
        return with_values(cond, control=control, control_apply_to_uncond=False)

    added, expected, rows, _ = compare(
        nodes, model, prompts, mode, positive, negative,
        b=with_control(base), u=with_control(prompts.empty), t=positive,
    )  # fmt: skip

    close(added, expected)
    assert rows == [3], "all rows share one ControlNet, so they share one batch"
    assert not torch.allclose(alone(model, positive), alone(model, prompts.target), atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [AREA, MASK], ids=["area", "mask"])
def test_a_base_for_a_part_of_the_picture_enhances_that_part_alone(nodes, model, prompts, mode, values):
    """The rest is what the host's own guidance gives, to the byte."""
    base = with_values(base_of(prompts, mode), **values)
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=CFG)

    found, _ = predict(
        patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base),
        prompts.target,
        prompts.empty,
        cfg=CFG,
    )

    assert torch.equal(found[..., 4:], stock[..., 4:])
    assert (found[..., :2] - stock[..., :2]).abs().min() > 0
    if values is MASK:
        _, expected, _, _ = compare(nodes, model, prompts, mode)
        close(found[..., :4] - stock[..., :4], expected[..., :4])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [AREA, MASK], ids=["area", "mask"])
def test_a_positive_and_a_negative_of_several_parts(nodes, model, prompts, mode, values):
    """Areas and masks on the prompts themselves, combined with a prompt for the whole picture."""
    positive = [*prompts.target, *with_values(conditioning(7), **values)]
    negative = [*prompts.empty, *with_values(conditioning(8), **values)]

    added, expected, _, _ = compare(nodes, model, prompts, mode, positive, negative)

    if values is MASK:
        close(added, expected)
        return
    # The host evaluates each area for every conditioning, so the base is evaluated there too.
    base = base_of(prompts, mode)
    inside = [*base, *with_values(base, **values)]
    _, expected, _, _ = compare(nodes, model, prompts, mode, positive, negative, b=inside)
    close(added, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_base_for_a_part_of_the_schedule_enhances_that_part_alone(nodes, model, prompts, mode):
    """Outside its time it costs nothing."""
    base = with_values(base_of(prompts, mode), start_percent=0.0, end_percent=0.5)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    enhanced = patched(nodes, model, mode=mode, enhancement=STRENGTH, base=base)
    conds = prompts.target, prompts.empty

    early = predict(enhanced, *conds, cfg=CFG, sigma=to_sigma(0.3))
    late = predict(enhanced, *conds, cfg=CFG, sigma=to_sigma(0.7))

    assert torch.equal(late[0], predict(model, *conds, cfg=CFG, sigma=to_sigma(0.7))[0])
    assert (early[1], late[1]) == ([3], [2])
    added, expected, _, _ = compare(nodes, model, prompts, mode, base=base, sigma=to_sigma(0.3))
    close(added, expected)


@pytest.mark.parametrize("mode", MODES)
def test_prompts_that_take_turns(nodes, model, prompts, mode):
    """A positive of one prompt for the first half of the schedule and one for the second."""
    turns = [
        *with_values(prompts.target, start_percent=0.0, end_percent=0.5),
        *with_values(conditioning(7), start_percent=0.5, end_percent=1.0),
    ]
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma

    for percent, t in ((0.3, prompts.target), (0.7, conditioning(7))):
        added, expected, rows, _ = compare(nodes, model, prompts, mode, turns, sigma=to_sigma(percent), t=t)
        close(added, expected)
        assert rows == [3]


@pytest.mark.parametrize("mode", MODES)
def test_combined_conditionings(nodes, model, prompts, mode):
    """Several prompts in positive, negative and base are averaged, as the host does it."""
    mean = (alone(model, prompts.source) + alone(model, conditioning(9))) / 2
    base = [*prompts.source, *conditioning(9)]

    added, expected, rows, _ = compare(
        nodes,
        model,
        prompts,
        mode,
        [*prompts.target, *conditioning(7)],
        [*prompts.empty, *conditioning(8)],
        base,
    )

    close(added, expected)
    close(alone(model, base), mean)
    assert rows == [6]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("tokens", "rows"), [(12, [3]), (7, [2, 1])])
def test_prompts_of_other_lengths(nodes, model, prompts, mode, tokens, rows):
    """The host repeats tokens up to a common length, or evaluates in two batches where that is too long."""
    added, expected, found, _ = compare(nodes, model, prompts, mode, conditioning(9, tokens=tokens))

    close(added, expected)
    assert sorted(found) == sorted(rows)


def test_what_belongs_to_the_picture_is_taken_over(nodes, prompts):
    """A size such as SDXL's, given with the positive alone, holds for the base as well."""
    model = tiny_model(pooled=3)
    sdxl = tiny_prompts(nodes, pooled=3).first
    sizes = {"width": 128, "height": 96}
    positive = with_values(sdxl.target, **sizes)

    added, expected, _, _ = compare(
        nodes, model, sdxl, "VN-N", positive, base=sdxl.source, b=with_values(sdxl.source, **sizes)
    )

    close(added, expected)
    assert not torch.allclose(
        alone(model, sdxl.source), alone(model, with_values(sdxl.source, **sizes)), atol=1e-3
    )
