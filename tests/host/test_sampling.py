"""Enhanced sampling is Eq. 6, the same through every node, and plain guidance to the byte where it is off."""

from __future__ import annotations

import pytest
import torch

from tests.host.drawing import (
    WAYS,
    alone,
    draw,
    ksampler,
    latent,
    patched,
    predict,
    predict_with,
    recorder,
    rows_of,
)
from tests.host.tiny import conditioning, host_module, tiny_model, tiny_prompts

ENHANCED = ["V-uncond", "VN-N"]
OFF = [
    {"mode": "none", "enhancement": 0.7},
    {"mode": "VN-N", "enhancement": 0.0},
    {"mode": "V-uncond", "enhancement": 0.7, "end_percent": 0.0},
]


@pytest.fixture(scope="module")
def model(comfy):
    return tiny_model()


@pytest.fixture(scope="module")
def prompts(nodes):
    return tiny_prompts(nodes)


def directions(model, prompts, **options):
    """Return what each mode adds for a strength of 1 at cfg 1, from predictions made one by one."""
    t, n, v, u = (
        alone(model, getattr(prompts, name), **options) for name in ("target", "source", "bare", "empty")
    )
    return {"V-uncond": v - u, "VN-N": t - n}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


# the same through every node


@pytest.mark.parametrize("mode", ENHANCED)
@pytest.mark.parametrize(
    ("sampler_name", "scheduler", "denoise"),
    [
        ("euler", "normal", 1.0),
        ("euler", "karras", 1.0),
        ("euler_ancestral", "normal", 1.0),
        ("dpmpp_2m_sde", "karras", 1.0),
        ("ddim", "ddim_uniform", 0.5),
    ],
)
def test_every_node_draws_the_same_bytes(nodes, model, prompts, mode, sampler_name, scheduler, denoise):
    """Also from an image, and with all other inputs of the enhancement in use."""
    start = latent(fill=0.0 if denoise == 1.0 else 1.0)
    sampling = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise}
    enhancement = {
        "mode": mode, "enhancement": 0.7, "prompts": prompts, "start_percent": 0.1, "end_percent": 0.8,
        "rescale": 0.4,
    }  # fmt: skip

    drawn = [
        draw(nodes, way, model, prompts.target, prompts.empty, start, enhancement, **sampling) for way in WAYS
    ]

    assert all(torch.equal(each, drawn[0]) for each in drawn[1:])
    assert not torch.equal(drawn[0], ksampler(model, prompts.target, prompts.empty, start, **sampling))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize(
    ("sampler_name", "scheduler", "denoise", "cfg"),
    [
        ("euler", "normal", 1.0, 3.0),
        ("dpm_2_ancestral", "karras", 1.0, 3.0),
        ("ddim", "ddim_uniform", 0.5, 1.0),
    ],
)
def test_where_it_is_off_bytes_and_rows_are_those_of_the_stock_ksampler(
    nodes, model, prompts, way, off, sampler_name, scheduler, denoise, cfg
):
    start = latent(fill=0.0 if denoise == 1.0 else 1.0)
    sampling = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise, "cfg": cfg}
    expected, stock_rows = rows_of(
        model, lambda: ksampler(model, prompts.target, prompts.empty, start, **sampling)
    )

    found, rows = rows_of(
        model,
        lambda: draw(
            nodes, way, model, prompts.target, prompts.empty, start, {"prompts": prompts, **off}, **sampling
        ),
    )

    assert torch.equal(found, expected)
    assert rows == stock_rows


def test_the_other_entries_of_a_latent_are_kept(nodes, model, prompts):
    start = latent() | {"batch_index": [3, 7]}
    with torch.inference_mode():
        found = nodes("nodes.sampling").DomainGalleryKSampler.execute(
            model, prompts.target, prompts.empty, "none", 3.0, 1.0, 5, 3, "euler", "normal", 1.0, start
        )[0]

    assert found.keys() == start.keys()
    assert torch.equal(found["samples"], ksampler(model, prompts.target, prompts.empty, start))


# Eq. 6, in one batch


@pytest.mark.parametrize("mode", ENHANCED)
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_enhancement_is_equation_6_in_one_batch(nodes, prompts, mode, kind):
    """Each mode equals the formula on predictions that were made one by one, and costs one row more."""
    model, sigma = tiny_model(kind), 0.7
    t, u = alone(model, prompts.target, sigma=sigma), alone(model, prompts.empty, sigma=sigma)
    term = directions(model, prompts, sigma=sigma)[mode]
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)

    close(found, u + 3 * (t - u) + 3 * 0.7 * term)
    assert rows == [3]


@pytest.mark.parametrize(("mode", "count"), [("V-uncond", 3), ("VN-N", 2)])
def test_cfg_1_stays_exact_and_skips_what_it_can(nodes, model, prompts, mode, count):
    """The negative is evaluated only where the enhancement reads it; other patches may ask for it always."""
    term = directions(model, prompts)[mode]
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=1.0)
    enhanced.disable_model_cfg1_optimization()
    unshortened, all_rows = predict(enhanced, prompts.target, prompts.empty, cfg=1.0)

    expected = alone(model, prompts.target) + 0.7 * term
    close(found, expected)
    close(unshortened, expected)
    assert (rows, all_rows) == ([count], [3])


def test_a_negative_strength_takes_the_domain_away(nodes, model, prompts):
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=3.0)
    term = directions(model, prompts)["V-uncond"]

    found, _ = predict(
        patched(nodes, model, mode="V-uncond", enhancement=-0.5, prompts=prompts),
        prompts.target, prompts.empty, cfg=3.0,
    )  # fmt: skip

    close(found, stock - 3 * 0.5 * term)


def test_two_domains_are_two_summands(nodes, model, prompts):
    """Each with its own base and strength, all rows in one batch."""
    other = conditioning(11)
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=3.0)
    term = directions(model, prompts)["VN-N"]
    second = alone(model, other) - alone(model, prompts.empty)
    first = patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=prompts)
    both = patched(nodes, first, mode="V-uncond", enhancement=-0.4, base=other)

    found, rows = predict(both, prompts.target, prompts.empty, cfg=3.0)
    first_alone, first_rows = predict(first, prompts.target, prompts.empty, cfg=3.0)

    close(found, stock + 3 * 0.7 * term - 3 * 0.4 * second)
    close(first_alone, stock + 3 * 0.7 * term)
    assert (rows, first_rows) == ([4], [3])


def test_the_base_given_comes_before_that_of_the_prompts(nodes, model, prompts):
    with_base = patched(nodes, model, mode="VN-N", enhancement=1.0, prompts=prompts, base=prompts.empty)

    found, rows = predict(with_base, prompts.target, prompts.empty, cfg=3.0)

    stock, _ = predict(model, prompts.target, prompts.empty, cfg=3.0)
    close(found, stock + 3 * (alone(model, prompts.target) - alone(model, prompts.empty)))
    assert rows == [2], "the base is the negative, which is evaluated anyway"


@pytest.mark.parametrize(
    ("mode", "positive", "negative", "rows"),
    [
        ("V-uncond", "bare", "empty", [2]),  # the identifier is the prompt
        ("VN-N", "target", "source", [2]),  # the category is the negative
        ("VN-N", "source", "empty", [2]),  # the prompt has no identifier
        ("V-uncond", "target", "bare", [2]),  # the identifier is the negative
    ],
)
def test_the_same_conditioning_is_evaluated_once(nodes, model, prompts, mode, positive, negative, rows):
    """Equal prompts are found by their content, not by being one object."""
    again = tiny_prompts(nodes)
    conds = getattr(again, positive), getattr(again, negative)
    base = {"V-uncond": prompts.bare, "VN-N": prompts.source}[mode]
    stock, _ = predict(model, *conds, cfg=3.0)
    counterpart = conds[1] if mode == "V-uncond" else conds[0]
    term = alone(model, base) - alone(model, counterpart)

    found, count = predict(
        patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts), *conds, cfg=3.0
    )

    close(found, stock + 3 * 0.7 * (term if mode == "V-uncond" else -term))
    assert count == rows


def test_two_enhancements_with_one_base_share_its_row(nodes, model, prompts):
    once = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=prompts)
    twice = patched(nodes, once, mode="V-uncond", enhancement=0.2, prompts=prompts)
    whole = patched(nodes, model, mode="V-uncond", enhancement=0.9, prompts=prompts)

    found, rows = predict(twice, prompts.target, prompts.empty, cfg=3.0)

    close(found, predict(whole, prompts.target, prompts.empty, cfg=3.0)[0])
    assert rows == [3]


def test_it_acts_from_start_to_end(nodes, model, prompts):
    """At the noise levels that the host gives for the two percentages, both included."""
    stock = {}
    enhanced = patched(
        nodes, model, mode="VN-N", enhancement=0.7, prompts=prompts, start_percent=0.3, end_percent=0.6
    )
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    rows = {}
    for percent in (0.2, 0.31, 0.45, 0.59, 0.7):
        sigma = float(to_sigma(percent))
        stock[percent], _ = predict(model, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)
        found, rows[percent] = predict(enhanced, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)
        assert torch.equal(found, stock[percent]) == (percent in (0.2, 0.7))

    assert rows == {0.2: [2], 0.31: [3], 0.45: [3], 0.59: [3], 0.7: [2]}


def test_rescaling_brings_the_contrast_back(nodes, model, prompts):
    def contrast(**options):
        enhanced = patched(nodes, model, mode="VN-N", enhancement=2.0, prompts=prompts, **options)
        return float(predict(enhanced, prompts.target, prompts.empty, cfg=5.0)[0].std())

    plain, half, full = contrast(), contrast(rescale=0.5), contrast(rescale=1.0)

    assert full == pytest.approx(float(alone(model, prompts.target).std()), rel=1e-3)
    assert half == pytest.approx((plain + full) / 2, rel=1e-3)
    assert plain > 1.05 * full


# hooks of others


@pytest.mark.parametrize("mode", ENHANCED)
def test_guidance_hooks_are_called_once_with_what_they_expect(nodes, model, prompts, mode):
    """They see the predictions for positive and negative as they are, and then the enhanced picture."""
    seen, hooks = recorder()
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts)
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


def test_a_hook_that_evaluates_the_rows_itself_is_kept(nodes, model, prompts):
    """It is asked once, for what it knows: positive and negative."""
    samplers = host_module("comfy.samplers")
    asked = []

    def evaluate(args):
        asked.append(len(args["conds"]))
        return samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    enhanced = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=prompts)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    for first in (True, False):  # whichever node comes first
        hooked = model.clone() if first else enhanced.clone()
        hooked.set_model_sampler_calc_cond_batch_function(evaluate)
        if first:
            hooked = patched(nodes, hooked, mode="V-uncond", enhancement=0.7, prompts=prompts)
        found, rows = predict(hooked, prompts.target, prompts.empty, cfg=3.0)
        assert torch.equal(found, plain) and rows == [3]

    assert asked == [2, 2]


def test_rows_that_are_evaluated_apart_are_completed(nodes, model, prompts):
    """A hook that evaluates positive and negative in two batches, as skip layer guidance does."""
    samplers = host_module("comfy.samplers")

    def evaluate(args):
        rest = args["input"], args["sigma"], args["model_options"]
        positive, negative = args["conds"]
        first, _ = samplers.calc_cond_batch(args["model"], [positive, None], *rest)
        _, second = samplers.calc_cond_batch(args["model"], [None, negative], *rest)
        return [first, second]

    enhanced = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=prompts)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.set_model_sampler_calc_cond_batch_function(evaluate)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [3, 1]


@pytest.mark.parametrize("mode", ENHANCED)
def test_rows_that_are_not_recognised_are_evaluated_again(nodes, model, prompts, mode):
    """A hook that evaluates copies of the conditionings, as context windows do: right, but in two batches."""
    samplers = host_module("comfy.samplers")

    def evaluate(args):
        copies = [list(cond) for cond in args["conds"]]
        return samplers.calc_cond_batch(
            args["model"], copies, args["input"], args["sigma"], args["model_options"]
        )

    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts)
    plain, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    enhanced.set_model_sampler_calc_cond_batch_function(evaluate)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    close(found, plain)
    assert rows == [2, 2]


def test_a_model_is_left_as_it_was(nodes, model, prompts):
    before = predict(model, prompts.target, prompts.empty, cfg=3.0)[0]
    enhanced = patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=prompts)
    first, _ = predict(enhanced, prompts.target, prompts.empty, cfg=3.0)

    assert torch.equal(predict(model, prompts.target, prompts.empty, cfg=3.0)[0], before)
    assert torch.equal(predict(enhanced, prompts.target, prompts.empty, cfg=3.0)[0], first)


# bad input


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "V"}, "mode among none, V-uncond, VN-N, got 'V'"),
        ({"enhancement": NAN}, "enhancement to be a finite number, got nan"),
        ({"start_percent": NAN}, "start_percent between 0 and 1, got nan"),
        ({"end_percent": 1.5}, "end_percent between 0 and 1, got 1.5"),
        ({"rescale": INF}, "rescale between 0 and 1, got inf"),
        ({"start_percent": 0.6, "end_percent": 0.4}, "start_percent up to end_percent, got 0.6 and 0.4"),
        ({"prompts": None}, "prompts or base for the mode VN-N, got neither"),
        ({"base": []}, "base conditioning, got an empty one"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_work_is_refused_before_the_first_step(nodes, model, prompts, way, changes, message):
    enhancement = {"mode": "VN-N", "enhancement": 0.7, "prompts": prompts} | changes

    def run():
        with pytest.raises(Exception, match=message):
            draw(nodes, way, model, prompts.target, prompts.empty, latent(), enhancement)

    assert rows_of(model, run)[1] == []


def test_a_scale_that_is_not_a_number_is_refused(nodes, model, prompts):
    with pytest.raises(Exception, match="cfg to be a finite number, got inf"):
        draw(
            nodes, "Domain KSampler", model, prompts.target, prompts.empty, latent(),
            {"mode": "none", "enhancement": 0.0}, cfg=INF,
        )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_another_text_encoder_are_refused(nodes, model, prompts, way):
    """Of another model family, or with a pooled embedding of another width."""
    wide = [[torch.zeros(1, 6, 24), {}]]
    pooled = conditioning(3, pooled=8)
    enhancement = {"mode": "VN-N", "enhancement": 0.7}

    with pytest.raises(Exception, match="encoded for this model, 16 numbers for a token, got 24"):
        draw(nodes, way, model, prompts.target, prompts.empty, latent(), enhancement | {"base": wide})
    with pytest.raises(Exception, match="from one text encoder, got 8 and 5 numbers for a prompt"):
        positive = conditioning(4, pooled=5)
        draw(nodes, way, model, positive, positive, latent(), enhancement | {"base": pooled})


def test_a_guider_without_a_negative_is_refused_where_the_mode_reads_it(nodes, model, prompts):
    custom = __import__("comfy_extras.nodes_custom_sampler", fromlist=["Guider_Basic"])

    def guider(mode):
        made = custom.Guider_Basic(patched(nodes, model, mode=mode, enhancement=0.7, prompts=prompts))
        made.set_conds(prompts.target)
        return made

    found, rows = predict_with(guider("VN-N"))
    close(found, alone(model, prompts.target) + 0.7 * directions(model, prompts)["VN-N"])
    assert rows == [2]
    with pytest.raises(Exception, match="guider with a negative conditioning, got one without"):
        predict_with(guider("V-uncond"))


def test_notes_are_shown_on_the_node(nodes, model, prompts, monkeypatch):
    """A model without a LoRA; a prompt without the identifier. Both are allowed."""
    said = []
    for module in ("nodes.sampling", "nodes.guidance"):
        monkeypatch.setattr(nodes(module), "say", lambda node, text: said.append(text))

    options = {"mode": "VN-N", "enhancement": 0.7, "prompts": prompts}
    enhanced = patched(nodes, model, **options)
    assert not said, "a LoRA may be applied after the patch"
    predict(enhanced, prompts.source, prompts.empty, cfg=3.0)
    assert len(said) == 2 and "no LoRA" in said[0]
    assert "the same as the positive" in said[1] and "identifier" in said[1]

    key = "diffusion_model.out.2.weight"
    enhanced = enhanced.clone()
    enhanced.add_patches({key: ("diff", (torch.zeros_like(model.model.state_dict()[key]),))})
    predict(enhanced, prompts.target, prompts.empty, cfg=3.0)
    assert len(said) == 2

    draw(nodes, "Domain KSampler", model, prompts.target, prompts.empty, latent(), options | {"mode": "none"})
    assert len(said) == 3 and "no LoRA" in said[2]


def test_an_identifier_that_the_text_encoder_does_not_read_is_refused(nodes):
    class Clip:
        """Knows no word of three letters."""

        def tokenize(self, text):
            return [word for word in text.split() if len(word) != 3]

        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.tensor([[[float(len(word))] for word in tokens]]), {}]]

    node = nodes("nodes.prompts").DomainGalleryPrompts

    assert node.execute(Clip(), "olis", "face")[0].identifier == "olis"
    with pytest.raises(Exception, match="got 'sks': 'a sks face' and 'a face' are the same to it"):
        node.execute(Clip(), "sks", "face")
