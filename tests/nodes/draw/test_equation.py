"""Enhanced sampling is Eq. 6, the same through every node, and plain guidance to the byte where it is off."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.draw.drawing import WAYS, alone, draw, ksampler, latent, patched, predict, rows_of
from tests.nodes.draw.formula import MODES, base_of, close, directions
from tests.nodes.tiny import conditioning, tiny_model, tiny_prompts

OFF = [
    {"mode": "none", "enhancement": 0.7},
    {"mode": "VN-N", "enhancement": 0.0},
    {"mode": "V-uncond", "enhancement": 0.7, "end_percent": 0.0},
    {"mode": "V-uncond", "enhancement": 0.7, "start_percent": 1.0},
]


# the same through every node


@pytest.mark.parametrize("mode", MODES)
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
def test_every_node_draws_the_same_bytes(
    nodes, model, prompts, domain, mode, sampler_name, scheduler, denoise
):
    """Also from an image, and with all other inputs of the enhancement in use."""
    start = latent(fill=0.0 if denoise == 1.0 else 1.0)
    sampling = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise}
    enhancement = {
        "mode": mode, "enhancement": 0.7, "prompts": domain, "start_percent": 0.1, "end_percent": 0.8,
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
    nodes, model, prompts, domain, way, off, sampler_name, scheduler, denoise, cfg
):
    start = latent(fill=0.0 if denoise == 1.0 else 1.0)
    sampling = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise, "cfg": cfg}
    expected, stock_rows = rows_of(
        model, lambda: ksampler(model, prompts.target, prompts.empty, start, **sampling)
    )

    found, rows = rows_of(
        model,
        lambda: draw(
            nodes, way, model, prompts.target, prompts.empty, start, {"prompts": domain, **off}, **sampling
        ),
    )

    assert torch.equal(found, expected)
    assert rows == stock_rows


def test_the_other_entries_of_a_latent_are_kept(nodes, model, prompts):
    start = latent() | {"batch_index": [3, 7]}
    with torch.inference_mode():
        found = nodes("nodes.draw.sampling").DomainGalleryKSampler.execute(
            model, prompts.target, prompts.empty, "none", 3.0, 1.0, 5, 3, "euler", "normal", 1.0, start
        )[0]

    assert found.keys() == start.keys()
    assert torch.equal(found["samples"], ksampler(model, prompts.target, prompts.empty, start))


# Eq. 6, in one batch


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_enhancement_is_equation_6_in_one_batch(nodes, prompts, domain, mode, kind):
    """Each mode equals the formula on predictions that were made one by one, and costs one row more."""
    model, sigma = tiny_model(kind), 0.7
    t, u = alone(model, prompts.target, sigma=sigma), alone(model, prompts.empty, sigma=sigma)
    term = directions(model, prompts, sigma=sigma)[mode]
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)

    close(found, u + 3 * (t - u) + 3 * 0.7 * term)
    assert rows == [3]


@pytest.mark.parametrize(("mode", "count"), [("V-uncond", 3), ("VN-N", 2)])
def test_cfg_1_stays_exact_and_skips_what_it_can(nodes, model, prompts, domain, mode, count):
    """The negative is evaluated only where the enhancement reads it; other patches may ask for it always."""
    term = directions(model, prompts)[mode]
    enhanced = patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain)

    found, rows = predict(enhanced, prompts.target, prompts.empty, cfg=1.0)
    enhanced.disable_model_cfg1_optimization()
    unshortened, all_rows = predict(enhanced, prompts.target, prompts.empty, cfg=1.0)

    expected = alone(model, prompts.target) + 0.7 * term
    close(found, expected)
    close(unshortened, expected)
    assert (rows, all_rows) == ([count], [3])


def test_a_negative_strength_takes_the_domain_away(nodes, model, prompts, domain):
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=3.0)
    term = directions(model, prompts)["V-uncond"]

    found, _ = predict(
        patched(nodes, model, mode="V-uncond", enhancement=-0.5, prompts=domain),
        prompts.target, prompts.empty, cfg=3.0,
    )  # fmt: skip

    close(found, stock - 3 * 0.5 * term)


def test_two_domains_are_two_summands(nodes, model, prompts, domain):
    """Each with its own base and strength, all rows in one batch."""
    other = conditioning(11)
    stock, _ = predict(model, prompts.target, prompts.empty, cfg=3.0)
    term = directions(model, prompts)["VN-N"]
    second = alone(model, other) - alone(model, prompts.empty)
    first = patched(nodes, model, mode="VN-N", enhancement=0.7, prompts=domain)
    both = patched(nodes, first, mode="V-uncond", enhancement=-0.4, base=other)

    found, rows = predict(both, prompts.target, prompts.empty, cfg=3.0)
    first_alone, first_rows = predict(first, prompts.target, prompts.empty, cfg=3.0)

    close(found, stock + 3 * 0.7 * term - 3 * 0.4 * second)
    close(first_alone, stock + 3 * 0.7 * term)
    assert (rows, first_rows) == ([4], [3])


def test_the_base_given_comes_before_that_of_the_prompts(nodes, model, prompts, domain):
    with_base = patched(nodes, model, mode="VN-N", enhancement=1.0, prompts=domain, base=prompts.empty)

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
def test_the_same_conditioning_is_evaluated_once(
    nodes, model, prompts, domain, mode, positive, negative, rows
):
    """Equal prompts are found by their content, not by being one object."""
    again = tiny_prompts(nodes).first
    conds = getattr(again, positive), getattr(again, negative)
    base = base_of(prompts, mode)
    stock, _ = predict(model, *conds, cfg=3.0)
    counterpart = conds[1] if mode == "V-uncond" else conds[0]
    term = alone(model, base) - alone(model, counterpart)

    found, count = predict(patched(nodes, model, mode=mode, enhancement=0.7, prompts=domain), *conds, cfg=3.0)

    close(found, stock + 3 * 0.7 * (term if mode == "V-uncond" else -term))
    assert count == rows


def test_two_enhancements_with_one_base_share_its_row(nodes, model, prompts, domain):
    once = patched(nodes, model, mode="V-uncond", enhancement=0.7, prompts=domain)
    twice = patched(nodes, once, mode="V-uncond", enhancement=0.2, prompts=domain)
    whole = patched(nodes, model, mode="V-uncond", enhancement=0.9, prompts=domain)

    found, rows = predict(twice, prompts.target, prompts.empty, cfg=3.0)

    close(found, predict(whole, prompts.target, prompts.empty, cfg=3.0)[0])
    assert rows == [3]


def test_it_acts_from_start_to_end(nodes, model, prompts, domain):
    """At the noise levels that the host gives for the two percentages, both included."""
    stock = {}
    enhanced = patched(
        nodes, model, mode="VN-N", enhancement=0.7, prompts=domain, start_percent=0.3, end_percent=0.6
    )
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    rows = {}
    for percent in (0.2, 0.3, 0.45, 0.6, 0.7):
        sigma = float(to_sigma(percent))
        stock[percent], _ = predict(model, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)
        found, rows[percent] = predict(enhanced, prompts.target, prompts.empty, cfg=3.0, sigma=sigma)
        assert torch.equal(found, stock[percent]) == (percent in (0.2, 0.7))

    assert rows == {0.2: [2], 0.3: [3], 0.45: [3], 0.6: [3], 0.7: [2]}


def test_rescaling_brings_the_contrast_back(nodes, model, prompts, domain):
    def contrast(**options):
        enhanced = patched(nodes, model, mode="VN-N", enhancement=2.0, prompts=domain, **options)
        return float(predict(enhanced, prompts.target, prompts.empty, cfg=5.0)[0].std())

    plain, half, full = contrast(), contrast(rescale=0.5), contrast(rescale=1.0)

    assert full == pytest.approx(float(alone(model, prompts.target).std()), rel=1e-3)
    assert half == pytest.approx((plain + full) / 2, rel=1e-3)
    assert plain > 1.05 * full
