"""Hooks of other nodes into guidance see what they expect, and the enhancement is what it is without them."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.draw.drawing import alone, patched, predict, recorder
from tests.nodes.draw.formula import MODES, close
from tests.nodes.tiny import host_module


@pytest.mark.parametrize("mode", MODES)
def test_guidance_hooks_are_called_once_with_what_they_expect(nodes, model, prompts, domain, mode):
    """They see the predictions for positive and negative as they are, and then the enhanced picture."""
    seen, hooks = recorder()
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.model_options |= hooks

    hooked, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(hooked, plain)
    assert (len(seen.pre), len(seen.cfg), len(seen.post), rows) == (1, 1, 1, [3])
    assert len(seen.pre[0]["conds"]) == len(seen.pre[0]["conds_out"]) == 2
    for args in (seen.cfg[0], seen.post[0]):
        close(args["cond_denoised"], alone(model, prompts.target))
        close(args["uncond_denoised"], alone(model, prompts.empty))
    assert torch.equal(seen.post[0]["denoised"], hooked)
    assert {"cond", "uncond", "cond_scale", "model", "sigma", "model_options", "input"} <= seen.post[0].keys()


@pytest.mark.parametrize("mode", MODES)
def test_a_hook_may_write_into_the_predictions_that_it_gets(nodes, model, prompts, domain, mode):
    """The enhancement is made of what the model predicted."""
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain)
    added = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)[0]
    added = added - predict(model, prompts.target, prompts.empty, cfg=3.0)[0]

    def write(args):
        for x0 in args["conds_out"]:
            x0.mul_(0.5)
        return args["conds_out"]

    hooked, stock = enhanced.clone(), model.clone()
    for each in (hooked, stock):
        each.set_model_sampler_pre_cfg_function(write)

    found = predict(hooked, prompts.target, prompts.empty, cfg=3.0)[0]

    close(found - predict(stock, prompts.target, prompts.empty, cfg=3.0)[0], added)


def test_a_sampling_function_of_another_pack_need_not_tell_the_scale(
    nodes, model, prompts, domain, monkeypatch
):
    """Some replace the host's by one like that of older hosts."""
    samplers = host_module("comfy.samplers")
    enhanced = patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=domain)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    def older(model, x, timestep, uncond, cond, cond_scale, model_options, seed=None):
        t, u = samplers.calc_cond_batch(model, [cond, uncond], x, timestep, model_options)
        denoised = u + cond_scale * (t - u)
        known = {"denoised": denoised, "model": model, "sigma": timestep, "input": x}
        for function in model_options["sampler_post_cfg_function"]:
            denoised = function({**known, "model_options": model_options})
        return denoised

    monkeypatch.setattr(samplers, "sampling_function", older)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [3]


def test_a_hook_that_evaluates_the_rows_itself_is_kept(nodes, model, prompts, domain):
    """It is asked once, for what it knows: positive and negative."""
    samplers = host_module("comfy.samplers")
    asked = []

    def evaluate(args):
        asked.append(len(args["conds"]))
        return samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    enhanced = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=domain)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    for first in (True, False):  # whichever node comes first
        hooked = model.clone() if first else enhanced.clone()
        hooked.set_model_sampler_calc_cond_batch_function(evaluate)
        if first:
            hooked = patched(nodes, hooked, mode="V-uncond", enhancement=0.7, prompts=domain)
        found, rows = predict(hooked, prompts.target, prompts.empty, cfg=3.0)
        assert torch.equal(found, plain) and rows == [3]

    assert asked == [2, 2]


def test_rows_that_are_evaluated_apart_are_completed(nodes, model, prompts, domain):
    """A hook that evaluates positive and negative in two batches, as skip layer guidance does."""
    samplers = host_module("comfy.samplers")

    def evaluate(args):
        rest = args["input"], args["sigma"], args["model_options"]
        positive, negative = args["conds"]
        first, _ = samplers.calc_cond_batch(args["model"], [positive, None], *rest)
        _, second = samplers.calc_cond_batch(args["model"], [None, negative], *rest)
        return [first, second]

    enhanced = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=domain)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.set_model_sampler_calc_cond_batch_function(evaluate)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [3, 1]


def evaluate_copies(args):
    """Evaluate copies of the conditionings, as context windows do."""
    copies = [list(cond) for cond in args["conds"]]
    return host_module("comfy.samplers").calc_cond_batch(
        args["model"], copies, args["input"], args["sigma"], args["model_options"]
    )


@pytest.mark.parametrize(
    ("mode", "rescale", "expected"), [("V-uncond", 0.0, 2), ("VN-N", 0.0, 2), ("V-uncond", 0.5, 3)]
)
def test_rows_that_are_not_recognised_are_evaluated_again(
    nodes, model, prompts, domain, mode, rescale, expected
):
    """All that the enhancement and its rescaling read, right, but in two batches."""
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain, rescale=rescale)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.set_model_sampler_calc_cond_batch_function(evaluate_copies)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [2, expected]


def test_a_model_is_left_as_it_was(nodes, model, prompts, domain):
    before = predict(model, prompts.target, prompts.empty, cfg=3.0)[0]
    enhanced = patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=domain)
    first, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    assert torch.equal(predict(model, prompts.target, prompts.empty, cfg=3.0)[0], before)
    assert torch.equal(predict(enhanced, prompts.target, prompts.empty, cfg=3.0)[0], first)


def two_rows_alone(model, seen):
    """Put a patch on a MODEL that knows positive and negative and no more, as those of other packs do."""

    def replace(q, k, v, options):
        rows = options["cond_or_uncond"]
        seen.append(list(rows))
        assert set(rows) <= {0, 1} and q.shape[0] % len(rows) == 0
        out = host_module("comfy.ldm.modules.attention").attention_pytorch(q, k, v, options["n_heads"])
        parts = list(out.chunk(len(rows)))
        for i, row in enumerate(rows):
            parts[i] = parts[i] * (1.5 if row == 0 else 1.0)
        return torch.cat(parts)

    patched_model = model.clone()
    patched_model.set_model_attn2_replace(replace, "middle", 0)
    return patched_model


def marked(prompts, mode):
    """Return the base of a mode, what it is compared with, and how the host marks that."""
    return {"V-uncond": (prompts.bare, prompts.empty, 1), "VN-N": (prompts.source, prompts.target, 0)}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_beside_patches_of_attention_the_base_is_evaluated_apart(nodes, model, prompts, domain, mode):
    """Such patches know the rows 0 and 1 alone: a base is marked as that which it is compared with.

    The sum is that of the rows evaluated one by one.
    """
    seen: list[list[int]] = []
    both = two_rows_alone(model, seen)
    enhanced = patched(nodes, both, mode=mode, enhancement=0.7, prompts=domain)
    plain, _ = predict(both, prompts.target, prompts.empty, cfg=3.0)
    seen.clear()

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    base, _, mark = marked(prompts, mode)
    assert rows == [2, 1] and seen == [[1, 0], [mark]]
    negative, positive = alone_as(both, prompts.empty, 1), alone_as(both, prompts.target, 0)
    b = alone_as(both, base, mark)
    direction = b - negative if mode == "V-uncond" else positive - b
    close(plain, negative + 3.0 * (positive - negative))
    close(found, plain + 3.0 * 0.7 * direction)


@pytest.mark.parametrize("mode", MODES)
def test_apart_the_numbers_are_those_of_one_batch(nodes, model, prompts, domain, mode, monkeypatch):
    """With a patch that treats all rows alike."""
    other = model.clone()
    other.set_model_attn2_output_patch(lambda out, options: 1.5 * out)
    enhanced = patched(nodes, other, mode=mode, enhancement=0.7, prompts=domain, rescale=0.5)
    apart, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    monkeypatch.setattr(nodes("nodes.draw.guidance"), "knows_two_rows", lambda *_: False)

    together, rows_together = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(apart, together)
    assert (rows, rows_together) == ([2, 1], [3])


@pytest.mark.parametrize("mode", MODES)
def test_a_base_of_nearly_the_same_words_adds_nearly_nothing(nodes, model, prompts, mode):
    """What a patch of attention does to the one that it is compared with, it does to the base."""
    both = two_rows_alone(model, [])
    _, ((tensor, values),), _ = marked(prompts, mode)
    enhanced = patched(nodes, both, mode=mode, enhancement=0.7, base=[[tensor + 1e-6, values]])

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, predict(both, prompts.target, prompts.empty, cfg=3.0)[0])
    assert rows == [2, 1]


def test_one_base_of_both_modes_is_evaluated_as_each_is_marked(nodes, model, prompts):
    seen: list[list[int]] = []
    both = two_rows_alone(model, seen)
    plain, _ = predict(both, prompts.target, prompts.empty, cfg=3.0)
    first = patched(nodes, both, mode="V-uncond", enhancement=0.7, base=prompts.bare)
    second = patched(nodes, first, mode="VN-N", enhancement=0.5, base=prompts.bare)
    seen.clear()

    found, _ = predict(second, prompts.target, prompts.empty, cfg=3.0)

    assert seen == [[1, 0], [1], [0]]
    b = [alone_as(both, prompts.bare, mark) for mark in (0, 1)]
    u, t = alone_as(both, prompts.empty, 1), alone_as(both, prompts.target, 0)
    close(found - plain, 3.0 * (0.7 * (b[1] - u) + 0.5 * (t - b[0])))


def with_another_forward(model):
    """Put another forward in the place of that of an attention, as packs do where the host has no patches."""
    other = model.clone()
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.forward"
    forward = other.get_model_object(name)

    def changed(x, context=None, value=None, mask=None, transformer_options=None):
        assert set(transformer_options["cond_or_uncond"]) <= {0, 1}
        return 1.5 * forward(x, context, value, mask, transformer_options=transformer_options)

    other.add_object_patch(name, changed)
    return other


def with_another_block(model):
    """Replace something else than an attention of a UNet, as packs do with blocks of transformers."""
    other = model.clone()
    other.set_model_patch_replace(lambda args, more: more["original_block"](args), "dit", "double_block", 0)
    return other


@pytest.mark.parametrize("change", [with_another_forward, with_another_block])
def test_beside_layers_that_are_replaced_the_base_is_evaluated_apart(nodes, model, prompts, domain, change):
    other = change(model)
    stock, _ = predict(other, prompts.target, prompts.empty, cfg=3.0)
    enhanced = patched(nodes, other, mode="VN-N", enhancement=0.7, prompts=domain)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found - stock, 3.0 * 0.7 * (alone(other, prompts.target) - alone(other, prompts.source)))
    assert rows == [2, 1]


def test_beside_patches_of_attention_rows_are_evaluated_again_one_by_one(nodes, model, prompts, domain):
    """Such patches never get rows that are neither positive nor negative, whoever evaluates these."""
    seen: list[list[int]] = []
    both = two_rows_alone(model, seen)
    enhanced = patched(nodes, both, mode="V-uncond", enhancement=0.7, prompts=domain)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.set_model_sampler_calc_cond_batch_function(evaluate_copies)
    seen.clear()

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [2, 1, 1] and {tuple(each) for each in seen} == {(1, 0), (1,)}


def test_beside_other_patches_the_base_stays_in_the_batch(nodes, model, prompts, domain):
    """FreeU and its like change what all rows have in common."""
    other = model.clone()
    other.set_model_output_block_patch(lambda h, skip, options: (1.1 * h, skip))
    stock, _ = predict(other, prompts.target, prompts.empty, cfg=3.0)
    enhanced = patched(nodes, other, mode="VN-N", enhancement=0.7, prompts=domain)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found - stock, 3.0 * 0.7 * (alone(other, prompts.target) - alone(other, prompts.source)))
    assert rows == [3]


def test_wrappers_of_other_packs_around_sampling_are_kept(nodes, model, prompts, domain):
    """Whether these have a name or not, and hang on the MODEL or on its options."""
    extension, calls = host_module("comfy.patcher_extension"), []

    def wrapper(executor, *args, **options):
        calls.append(1)
        return executor(*args, **options)

    plain, _ = predict(
        patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=domain),
        prompts.target, prompts.empty, cfg=3.0,
    )  # fmt: skip
    wrapped = model.clone()
    kind = extension.WrappersMP.OUTER_SAMPLE
    wrapped.add_wrapper(kind, wrapper)
    wrapped.add_wrapper_with_key(kind, "another pack", wrapper)
    extension.add_wrapper(kind, wrapper, wrapped.model_options, is_model_options=True)
    enhanced = patched(nodes, wrapped, mode="VN-N", enhancement=0.7, prompts=domain)

    found, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    assert torch.equal(found, plain) and len(calls) == 3


def alone_as(model, conditioning, number):
    """Return the x0 of one conditioning, marked as the host marks that row."""
    evaluated = {}
    hooked = model.clone()

    def keep(args):
        evaluated["x0"] = args["cond_denoised" if number == 0 else "uncond_denoised"]
        return args["denoised"]

    hooked.set_model_sampler_post_cfg_function(keep, disable_cfg1_optimization=True)
    predict(hooked, conditioning, conditioning, cfg=3.0)
    return evaluated["x0"]
