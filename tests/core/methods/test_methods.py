"""The losses of each method, against their definition written out evaluation by evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import ToyDenoiser, assert_same_gradients, conditions, latents, network, part, plan, random, terms

from domaingallery_core.data.parts import Batch
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator
from domaingallery_core.methods import Drawing, draw, noised_batch
from domaingallery_core.methods.similarity import clean_features, recurrent_denoise, similarity_consistency
from domaingallery_core.model.denoiser import Condition


@pytest.fixture(params=["epsilon", "v"])
def denoiser(request):
    return ToyDenoiser(network(), request.param)


def noised(denoiser, timestep=600, rows=4, prompts=None):
    return noised_batch(
        denoiser.process,
        timestep,
        prompts or conditions(),
        target=(latents(rows, 1), latents(rows, 2)),
        source=(latents(rows, 3), latents(rows, 4)),
    )


def drawn(process, *tensors, offset_noise=0.0, **others):
    step = {"domain": Batch(part(tensors[0]), *tensors)} | others
    return draw(step, process, generator(0, "noise"), Drawing(offset_noise=offset_noise))


def prediction(denoiser, images, condition):
    x0 = denoiser(images.x, images.sigma, condition.expand(len(images)))
    return denoiser.process.prediction(images.x, x0, images.sigma)


def mse(a, b):
    return ((a - b) ** 2).mean()


def expected_terms(denoiser, adapter, batch, prompts, method, guidance, scale):
    source = prediction(denoiser, batch.source, prompts.source)
    with torch.no_grad(), adapter.off():
        base = prediction(denoiser, batch.source, prompts.source)
    terms = {"prior": mse(source, batch.source.wanted), "disentanglement": mse(source, base)}
    if method == "erasure":
        terms["erasure"] = mse(prediction(denoiser, batch.source, prompts.target), source.detach())
        return terms
    terms["target"] = mse(prediction(denoiser, batch.target, prompts.target), batch.target.wanted)
    if method == "domaingallery":
        options = {"steps": 5, "guidance": guidance, "empty": prompts.empty}
        moving = recurrent_denoise(denoiser, batch.source.x, batch.timestep, prompts.target, **options)
        features = clean_features(denoiser, moving, prompts.target)
        with torch.no_grad():
            fixed = recurrent_denoise(denoiser, batch.source.x, batch.timestep, prompts.source, **options)
            reference = clean_features(denoiser, fixed, prompts.source)
        terms["similarity"] = similarity_consistency(features, reference, scale=scale)
    return terms


@pytest.mark.parametrize(
    ("method", "guidance", "timestep", "scale"),
    [
        ("erasure", 1.0, 600, "released"),
        ("domaingallery", 1.0, 600, "released"),
        ("domaingallery", 3.0, 600, "released"),
        ("domaingallery", 3.0, 2, "paper"),
    ],
)
def test_shared_evaluations_give_the_terms_and_gradients_of_the_definition(
    denoiser, adapter, method, guidance, timestep, scale
):
    batch, prompts = noised(denoiser, timestep), conditions()
    settings = plan(method, denoise_guidance=guidance, similarity_scale=scale)

    found = terms(denoiser, adapter, settings, batch)
    expected = expected_terms(denoiser, adapter, batch, prompts, method, guidance, scale)

    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-9, check_dtype=False)
        assert_same_gradients(found[name], expected[name], adapter)


@pytest.mark.parametrize(("method", "sum_of_all"), [("erasure", 2 + 3 + 4), ("domaingallery", 1 + 2 + 3 + 5)])
def test_the_total_weighs_every_term_but_the_target(method, sum_of_all):
    settings = plan(method, weights=dict(prior=2, disentanglement=3, erasure=4, similarity=5)).method
    ones = {term.name: torch.tensor(1.0) for term in settings.method.terms}

    assert float(settings.total(ones)) == sum_of_all


G, N = True, False  # with gradient or without

#: method, weights, rows of each evaluation with and without gradient, evaluations of features
COSTS = [
    ("erasure", {}, [(8, G), (4, N)], 0),
    ("erasure", {"disentanglement": 0}, [(8, G)], 0),
    ("erasure", {"erasure": 0}, [(4, G), (4, N)], 0),
    ("erasure", {"erasure": 0, "prior": 0}, [(4, G), (4, N)], 0),
    ("erasure", {"erasure": 0, "disentanglement": 0}, [(4, G)], 0),
    ("erasure", {"prior": 0, "disentanglement": 0}, [(4, G), (4, N)], 0),
    ("domaingallery", {}, [(12, G), (4, N), *4 * [(4, G)], *4 * [(4, N)]], 2),
    ("domaingallery", {"disentanglement": 0}, [(12, G), *4 * [(4, G)], *4 * [(4, N)]], 2),
    ("domaingallery", {"prior": 0}, [(12, G), (4, N), *4 * [(4, G)], *4 * [(4, N)]], 2),
    (
        "domaingallery",
        {"prior": 0, "disentanglement": 0},
        [(8, G), (4, N), *4 * [(4, G)], *4 * [(4, N)]],
        2,
    ),
    ("domaingallery", {"similarity": 0}, [(8, G), (4, N)], 0),
    ("domaingallery", {"similarity": 0, "disentanglement": 0}, [(8, G)], 0),
    ("domaingallery", {"similarity": 0, "prior": 0}, [(8, G), (4, N)], 0),
    ("domaingallery", {"similarity": 0, "disentanglement": 0, "prior": 0}, [(4, G)], 0),
    ("plain", {}, [(8, G)], 0),
    ("plain", {"prior": 0}, [(4, G)], 0),
]


@pytest.mark.parametrize(("method", "weights", "evaluations", "features"), COSTS)
def test_a_weight_of_zero_costs_nothing(denoiser, adapter, method, weights, evaluations, features):
    """What a step evaluates, and in which gradient mode, is what the terms with a weight need."""
    settings = plan(method, weights=dict(**weights))

    found = terms(denoiser, adapter, settings, noised(denoiser))

    assert sorted(zip(denoiser.rows, denoiser.with_gradient, strict=True)) == sorted(evaluations)
    assert denoiser.of_features == features
    assert not {name for name, weight in weights.items() if weight == 0} & found.keys()


def test_guidance_doubles_the_steps_of_the_denoising_and_no_more(denoiser, adapter):
    """The first step of both recurrences and its empty prompt are evaluated with the other terms."""
    terms(denoiser, adapter, plan("domaingallery", denoise_guidance=3.0), noised(denoiser))

    evaluations = [(16, G), (4, N), *4 * [(8, G)], *4 * [(8, N)]]
    assert sorted(zip(denoiser.rows, denoiser.with_gradient, strict=True)) == sorted(evaluations)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("method", "alone"), [("erasure", "erasure"), ("domaingallery", "similarity")])
def test_a_term_alone_is_what_it_is_among_others(denoiser, adapter, method, alone, guidance):
    """Its value and gradient do not depend on how evaluations are shared with other terms."""
    batch = noised(denoiser)
    off = dict.fromkeys(("prior", "disentanglement"), 0.0)

    found, among = (
        terms(
            denoiser, adapter, plan(method, weights=dict(**weights), denoise_guidance=guidance), batch
        )[alone]
        for weights in (off, {})
    )  # fmt: skip

    torch.testing.assert_close(found, among, rtol=1e-4, atol=1e-9)
    assert_same_gradients(found, among, adapter, rtol=1e-3, atol=1e-7)


def test_target_alone_is_plain_finetuning_without_prior(denoiser, adapter):
    weights = dict(prior=0, disentanglement=0, erasure=0, similarity=0)
    batch = noised(denoiser)

    first, second = (
        terms(denoiser, adapter, plan(name, weights=weights), batch) for name in ("domaingallery", "plain")
    )

    assert first.keys() == second.keys() == {"target"}
    assert torch.equal(first["target"], second["target"])


def test_a_draw_shares_the_timestep_and_not_the_noise(denoiser):
    zeros = torch.zeros(4, 2, 4, 4)

    batch = drawn(denoiser.process, zeros, zeros)["domain"]

    assert len(set(torch.cat([batch.target.sigma, batch.source.sigma]).tolist())) == 1
    rows = torch.cat([batch.target.x, batch.source.x]).flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == 8


def test_offset_noise_is_part_of_what_is_regressed_on():
    process = ToyDenoiser(network()).process
    found = drawn(process, torch.zeros(64, 2, 8, 8), offset_noise=10.0)["domain"].target

    torch.testing.assert_close(found.x, found.sigma[:, None, None, None] * found.wanted)
    assert float(found.wanted.mean((2, 3)).std()) == pytest.approx(10, rel=0.2)


def test_offset_noise_is_the_number_after_the_noise_and_none_unless_it_is_asked_for():
    """A seed gives the same LoRA in every version."""
    process, images = ToyDenoiser(network()).process, latents(4, 1)
    plain = draw({"domain": Batch(part(images), images)}, process, generator(0, "noise"))["domain"]
    offset = drawn(process, images, offset_noise=0.5)["domain"]

    stream = generator(0, "noise")
    timestep = int(torch.randint(len(process), (), generator=stream))
    noise = torch.randn(images.shape, generator=stream)
    level = torch.randn((4, 2, 1, 1), generator=stream)
    assert timestep == plain.timestep == offset.timestep
    torch.testing.assert_close(plain.target.wanted, noise)
    torch.testing.assert_close(offset.target.wanted, noise + 0.5 * level)


def test_draws_repeat_with_the_seed():
    process = ToyDenoiser(network()).process
    images = latents(3, 1), latents(3, 2)

    first, second = (drawn(process, *images, offset_noise=0.1)["domain"] for _ in range(2))

    assert first.timestep == second.timestep
    assert torch.equal(first.source.x, second.source.x)


def test_prompts_of_different_length_are_evaluated_apart(denoiser, adapter):
    prompts = conditions()
    longer = type(prompts)(target=Condition({"context": random(1, 6, 8, seed=1)}), source=prompts.source)

    terms(denoiser, adapter, plan("erasure"), noised(denoiser, prompts=longer))

    assert denoiser.rows[:2] == [4, 4]


def test_a_mask_weighs_the_places_of_the_target_term(denoiser, adapter):
    """A mask of one weight, however small, changes nothing; where it is 0, predictions do not matter."""
    batch, prompts, settings = noised(denoiser), conditions(), plan("plain")
    left = torch.ones(4, 1, 4, 4)
    left[..., 2:] = 0

    def target_term(mask):
        masked = replace(batch, target=replace(batch.target, mask=mask))
        return terms(denoiser, adapter, settings, masked)["target"]

    found = prediction(denoiser, batch.target, prompts.target)
    for weight in (1.0, 1e-3):
        torch.testing.assert_close(target_term(torch.full((4, 1, 4, 4), weight)), target_term(None))
    torch.testing.assert_close(target_term(left), mse(found[..., :2], batch.target.wanted[..., :2]))
    assert target_term(torch.zeros(4, 1, 4, 4)).item() == 0


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("target images", "target images"),
        ("source images", "source images"),
        ("source", "the source prompt"),
        ("empty", "the empty prompt"),
    ],
)
def test_what_a_term_lacks_is_named(denoiser, adapter, absent, message):
    """Also to those who ask for terms without a run, which looks at the parts before."""
    batch = noised(denoiser)
    if absent.endswith("images"):
        batch = replace(batch, **{absent.partition(" ")[0]: None})
    else:
        batch = replace(batch, prompts=replace(conditions(), **{absent: None}))

    with pytest.raises(InputError, match=f"Expected {message} for this training, got none. Connect it."):
        terms(denoiser, adapter, plan("domaingallery", denoise_guidance=3.0), batch)


def test_a_draw_keeps_masks_and_subjects(denoiser):
    mask, other = torch.rand(2, 1, 4, 4), part(latents(2, 3), latents(2, 4))
    images = latents(2, 1), latents(2, 2)
    subject = Batch(other, latents(2, 3), latents(2, 4))

    plain = drawn(denoiser.process, *images)["domain"]
    full = drawn(denoiser.process, *images, mask, subject=subject)

    domain, subject = full["domain"], full["subject"]
    assert torch.equal(domain.target.mask, mask) and domain.source.mask is None
    assert torch.equal(domain.source.x, plain.source.x)
    assert subject.timestep == domain.timestep and subject.prompts is other.prompts
    assert not torch.equal(subject.target.wanted, subject.source.wanted)
