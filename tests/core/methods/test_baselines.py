"""The systems that DomainGallery is compared with: losses and gradients against plain arithmetic."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import CHANNELS, SIZE, ToyDenoiser, conditions, latents, network, part, plan, random

from domaingallery_core.data.parts import Batch, batches
from domaingallery_core.errors import InputError
from domaingallery_core.generators import generator
from domaingallery_core.methods import METHODS, Drawing, draw
from domaingallery_core.methods.domainstudio import haar_details, high_frequencies
from domaingallery_core.methods.objectives import min_snr_weight
from domaingallery_core.methods.textual_inversion import PLACE, TEMPLATES
from domaingallery_core.model.denoiser import Condition
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.tokens import Tokens
from domaingallery_core.trainables.weights import Weights

MIX = random(3, CHANNELS, seed=21).double()


class ToyDecoder:
    """Mix channels, double the size and bend: pictures of latents whose scale is 1/2."""

    def __init__(self):
        self.given, self.with_gradient = [], []

    def __call__(self, latents, *, rescaled=True):
        self.given.append(tuple(latents.shape))
        self.with_gradient.append(torch.is_grad_enabled())
        return pictured(latents / 0.5 if rescaled else latents)


def pictured(latents):
    wide = latents.repeat_interleave(2, 2).repeat_interleave(2, 3)
    ramp = torch.linspace(0.5, 1.5, wide.shape[-1], dtype=latents.dtype)
    return torch.tanh(torch.einsum("dc,bchw->bdhw", MIX.to(latents.dtype), wide) * ramp)


def double(prompts):
    return prompts.map(lambda prompt: prompt.to(dtype=torch.float64))


@pytest.fixture
def model():
    return network().double()


def unchanged(model):
    """Tell whether a model has the weights that it was made with."""
    fresh = network().double()
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def drawn(name, rows=4, decoder=None, prompts=None):
    """Return what a step of a method reads, in float64."""
    prompts = double(prompts or conditions())
    target, source = latents(6, 1).double(), latents(7, 2).double()
    own = part(target, source, prompts=prompts, decoder=decoder)
    step = {"domain": Batch(own, target[:rows], source[:rows])}
    process = ToyDenoiser(network()).process
    return draw(step, process, generator(3, "noise"), plan(name).method.drawing)["domain"], own


def predicted(model, process, latent, noise, sigma, prompt):
    """Return the noise that a model sees in one image, and the clean image that this leaves."""
    x = latent + sigma * noise
    context = prompt.tensors["context"]
    out = model((x / (1 + sigma**2) ** 0.5)[None], (sigma.log() / 4)[None], context)[0]
    return out, x - sigma * out


def regression(model, process, images, prompt):
    """Return Eq. 1, image by image."""
    found = []
    for i in range(len(images)):
        out, _ = predicted(model, process, images.latents[i], images.noise[i], images.sigma[i], prompt)
        found.append(((out - images.noise[i]) ** 2).sum() / out.numel())
    return sum(found) / len(found)


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def assert_same(found, expected, parameters):
    """Compare two losses and their gradients; there is one."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    ours, theirs = gradients(found, parameters), gradients(expected, parameters)
    assert any(bool(g.abs().max() > 0) for g in theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def terms_of(name, model, trainable, batch, **changes):
    denoiser = ToyDenoiser(model)
    return plan(name, **changes).method.terms(denoiser, trainable, {"domain": batch}), denoiser


@pytest.mark.parametrize("name", ["dreambooth", "dreambooth_lora"])
def test_dreambooth_is_eq_1_on_both_kinds_of_images_at_timesteps_of_their_own(model, name):
    batch, own = drawn(name)
    with Weights(model) as weights:
        found, denoiser = terms_of(name, model, weights, batch)
        expected = {
            "target": regression(model, denoiser.process, batch.target, own.prompts.target),
            "prior": regression(model, denoiser.process, batch.source, own.prompts.source),
        }

        assert found.keys() == expected.keys() and denoiser.rows == [8]
        assert len({*batch.target.sigma.tolist(), *batch.source.sigma.tolist()}) == 8
        for term in found:
            assert_same(found[term], expected[term], list(weights.named_parameters().values()))


def test_a_weight_of_zero_is_no_prior_preservation(model):
    batch, _ = drawn("dreambooth")
    with Weights(model) as weights:
        found, denoiser = terms_of("dreambooth", model, weights, batch, weights={"prior": 0})

    assert found.keys() == {"target"} and denoiser.rows == [4]


def test_dreambooth_without_prior_preservation_is_plain_finetuning_step_for_step():
    """An ordinary loop over an ordinary copy of the model, with torch's own optimizer."""
    settings = plan("dreambooth", weights={"prior": 0}, steps=5, learning_rate=1e-2, batch_size=3)
    own = part(latents(5, 1).double(), prompts=double(conditions()))
    model, other = network().double(), copy.deepcopy(network().double()).requires_grad_(True)
    seen = []
    with Weights(model) as weights:
        train(
            ToyDenoiser(model), weights, [own], settings,
            lambda event: seen.append([p.detach().clone() for p in weights.named_parameters().values()]),
        )  # fmt: skip

    process, rows = ToyDenoiser(other).process, len(own.target)
    order, noise = generator(0, "order"), generator(0, "noise")
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=1e-2)
    waiting = []
    for step in range(5):
        while len(waiting) < 3:
            waiting += torch.randperm(rows, generator=order).tolist()
        images, waiting = own.target.latents[waiting[:3]], waiting[3:]
        torch.randint(1000, (), generator=noise)  # a timestep for all, which this method leaves aside
        eps = torch.randn(images.shape, generator=noise).double()
        sigma = process.sigmas[torch.randint(1000, (3,), generator=noise)]
        losses = [
            (predicted(other, process, images[i], eps[i], sigma[i], own.prompts.target)[0] - eps[i]) ** 2
            for i in range(3)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        expected = [p.detach() for p in other.parameters()]
        torch.testing.assert_close(seen[step], expected, rtol=1e-9, atol=1e-12)

    assert unchanged(model)


def cosine_rows(pictures):
    """Return for each picture the softmax of its cosines with the others."""
    rows = []
    for i, one in enumerate(pictures):
        cosines = [
            (one * other).sum() / (one.norm() * other.norm()) for j, other in enumerate(pictures) if j != i
        ]
        exps = torch.stack(cosines).exp()
        rows.append(exps / exps.sum())
    return rows


def kl(p, q):
    return sum((a * (a / b).log()).sum() for a, b in zip(p, q, strict=True))


def haar(pictures):
    """Return LH + HL + HH, pixel by pixel of the half-size picture."""
    found = torch.zeros(*pictures.shape[:2], pictures.shape[2] // 2, pictures.shape[3] // 2).to(pictures)
    for y in range(found.shape[2]):
        for x in range(found.shape[3]):
            (a, b), (c, d) = ([pictures[:, :, 2 * y + dy, 2 * x + dx] for dx in (0, 1)] for dy in (0, 1))
            bands = (a + b) - (c + d), (a + c) - (b + d), (a + d) - (b + c)
            found[:, :, y, x] = sum(bands) / 2
    return found


@pytest.mark.parametrize("released", [False, True])
def test_domainstudio_is_its_formulas(model, released):
    name = "domainstudio_released" if released else "domainstudio"
    decoder = ToyDecoder()
    batch, own = drawn(name, decoder=decoder)
    fresh = network().double()
    with Weights(model) as weights:
        moved = list(weights.named_parameters().values())
        with torch.no_grad():  # so that base and model differ
            for parameter in moved:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator(1, "move")).double()
        found, denoiser = terms_of(name, model, weights, batch)
        process = denoiser.process
        sigma = process.sigmas[batch.timestep]

        def seen(by, images, prompt):
            clean = [
                predicted(by, process, images.latents[i], images.noise[i], sigma, prompt)[1]
                for i in range(len(images))
            ]
            return pictured(torch.stack(clean) / (1.0 if released else 0.5))

        ours = seen(model, batch.target, own.prompts.target)
        theirs = seen(model if released else fresh, batch.source, own.prompts.source)
        of_domain = pictured((batch.others if released else batch.target.latents) / 0.5)

        def related(ours, theirs):
            p, q = cosine_rows(ours), cosine_rows(theirs)
            return kl(q, p) / (4 * 3) if released else kl(p, q) / 4

        expected = {
            "target": regression(model, process, batch.target, own.prompts.target),
            "prior": regression(model, process, batch.source, own.prompts.source),
            "image_similarity": related(ours, theirs),
            "frequency_similarity": related(haar(ours), haar(theirs)),
            "frequency": ((haar(ours) - haar(of_domain)) ** 2).mean(),
        }

        assert found.keys() == expected.keys()
        for term in found:
            assert_same(found[term], expected[term], moved)
    total = plan(name).method.total({term: torch.tensor(1.0) for term in found})
    assert float(total) == pytest.approx(1 + 1 + 100 + 100 + 0.1)


def test_pictures_are_decoded_one_at_a_time_and_again_in_the_backward_pass(model):
    decoder = ToyDecoder()
    batch, _ = drawn("domainstudio", decoder=decoder)
    with Weights(model) as weights:
        found, _ = terms_of("domainstudio", model, weights, batch)
        forward = len(decoder.given)
        found["image_similarity"].backward()

    assert set(decoder.given) == {(1, CHANNELS, SIZE, SIZE)}
    assert forward == 4 + 4 + 4 and len(decoder.given) == forward + 4  # of ours, of the base, of the domain


def test_the_released_variant_compares_with_other_images_of_the_domain():
    batch, own = drawn("domainstudio_released")

    rows = {tuple(row.flatten().tolist()) for row in own.target.latents}
    assert all(tuple(row.flatten().tolist()) in rows for row in batch.others)
    assert not torch.equal(batch.others, batch.target.latents)


def test_without_its_own_terms_domainstudio_is_dreambooth_and_decodes_nothing(model):
    decoder = ToyDecoder()
    off = {"image_similarity": 0, "frequency_similarity": 0, "frequency": 0}
    batch, _ = drawn("domainstudio", decoder=decoder)
    with Weights(model) as weights:
        found, _ = terms_of("domainstudio", model, weights, batch, weights=off)
        plain, _ = terms_of("dreambooth", model, weights, batch)

    assert found.keys() == plain.keys() and not decoder.given
    assert all(torch.equal(found[term], plain[term]) for term in found)


@pytest.mark.parametrize("variant", ["", "_released"])
def test_a_style_is_learned_beside_the_images_from_a_set_of_its_own(model, variant):
    batch, _ = drawn(f"domainstudio{variant}", decoder=ToyDecoder())
    style, own = drawn("dreambooth", prompts=replace(conditions(), target=conditions().source))
    settings = plan(f"domainstudio_style{variant}")
    with Weights(model) as weights:
        denoiser = ToyDenoiser(model)
        found = settings.method.terms(denoiser, weights, {"domain": batch, "subject": style})
        plain, _ = terms_of(f"domainstudio{variant}", model, weights, batch)
        expected = regression(model, denoiser.process, style.target, own.prompts.target)

        assert found.keys() == {*plain, "style"}
        assert_same(found["style"], expected, list(weights.named_parameters().values()))
        for term, value in plain.items():
            torch.testing.assert_close(found[term], value, rtol=1e-12, atol=1e-12)
    assert settings.method.reads("target", "subject") and not settings.method.reads("source", "subject")
    assert settings.method.weights["style"] == 1


def test_domainstudio_without_a_vae_is_refused(model):
    batch, _ = drawn("domainstudio")
    with (
        Weights(model) as weights,
        pytest.raises(InputError, match="Expected a VAE that decodes"),
    ):
        terms_of("domainstudio", model, weights, batch)


#: LH, HL and HH of [[1, 2], [4, 8]] as PyWavelets 1.9 gives them.
OF_FOUR = (-4.5, -2.5, 1.5)


def test_the_bands_are_those_of_pywavelets():
    four = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]], dtype=torch.float64)
    assert [float(band) for band in haar_details(four)] == list(OF_FOUR)

    import pywt

    pictures = random(2, 3, 8, 6, seed=4).double()
    _, details = pywt.dwt2(pictures.numpy(), "haar")
    for ours, theirs in zip(haar_details(pictures), details, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(high_frequencies(pictures), torch.from_numpy(sum(details)))


def test_an_odd_last_row_has_no_high_frequencies():
    pictures = random(1, 3, 5, 7, seed=4)

    assert torch.equal(high_frequencies(pictures), high_frequencies(pictures[..., :4, :6]))


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_min_snr_weighs_each_image_by_its_own_timestep(kind):
    process = ToyDenoiser(network(), kind).process
    images = latents(3, 1).double()
    batch = Batch(part(images), images)
    how = Drawing(shared=False, min_snr=5.0)

    found = draw({"domain": batch}, process, generator(0, "noise"), how)["domain"].target

    timesteps = process.timestep(found.sigma).tolist()
    expected = torch.tensor([min_snr_weight(process, t, 5.0) for t in timesteps]).double()
    torch.testing.assert_close(found.weight, expected)
    assert len(set(timesteps)) == 3


def test_the_weight_of_an_image_scales_its_error(model):
    batch, own = drawn("dreambooth")
    weighted = replace(
        batch, target=replace(batch.target, weight=torch.tensor([0.0, 0.0, 4.0, 0.0]).double())
    )
    third = replace(
        batch.target, latents=batch.target.latents[2:3], noise=batch.target.noise[2:3],
        sigma=batch.target.sigma[2:3], x=batch.target.x[2:3],
    )  # fmt: skip
    with Weights(model) as weights:
        found, denoiser = terms_of("dreambooth", model, weights, weighted, weights={"prior": 0})
        expected = regression(model, denoiser.process, third, own.prompts.target)

    torch.testing.assert_close(found["target"], expected)


def test_each_image_is_learned_under_a_caption_of_its_own():
    captions = tuple(Condition({"context": random(1, 3, 8, seed=seed)}) for seed in range(5))
    batch, own = drawn("textual_inversion", rows=6, prompts=replace(conditions(), captions=captions))

    rows = batch.prompts.target().tensors["context"]

    known = [caption.tensors["context"][0].tolist() for caption in own.prompts.captions]
    assert rows.shape == (6, 3, 8) and all(row.tolist() in known for row in rows)
    assert len({known.index(row.tolist()) for row in rows}) > 1
    again, _ = drawn("textual_inversion", rows=6, prompts=replace(conditions(), captions=captions))
    assert torch.equal(again.prompts.target().tensors["context"], rows)


def test_textual_inversion_moves_its_vectors_and_nothing_else(model):
    """Captions of which the second word is the vector, in a text encoder of one layer."""
    torch.manual_seed(0)
    encoder = torch.nn.Linear(8, 8).double().requires_grad_(False)
    tokens = Tokens({"clip": torch.ones(1, 8)}, roots=(encoder,))

    def caption(seed):
        others = random(1, 3, 8, seed=seed).double()

        def now():
            words = torch.cat([others[:, :1], tokens.vectors["clip"].double()[None], others[:, 2:]], 1)
            return Condition({"context": encoder(words)})

        return now

    captions = tuple(map(caption, range(4)))
    own = part(
        latents(5, 1).double(), prompts=replace(double(conditions()), target=captions[0], captions=captions)
    )
    denoiser = ToyDenoiser(model)
    result = train(denoiser, tokens, [own], plan("textual_inversion", steps=3))

    assert result.state_dict.keys() == {"clip"} and set(denoiser.rows) == {4}
    assert bool((result.state_dict["clip"] != 1).all())
    assert unchanged(model)


def test_templates_have_one_place_for_the_tokens():
    for name, templates in TEMPLATES.items():
        assert len(set(templates)) == len(templates) >= 10, name
        assert all(template.count(PLACE) == 1 and template == template.strip() for template in templates)


def test_defaults_are_those_of_the_recipes():
    def recipe(name):
        method = METHODS[name]
        return method.steps, method.learning_rate, method.trains, method.weights

    assert recipe("dreambooth") == (800, 5e-6, "weights", {"prior": 1.0})
    assert recipe("dreambooth_lora") == (500, 1e-4, "adapter", {"prior": 1.0})
    weights = {"prior": 1.0, "image_similarity": 100.0, "frequency_similarity": 100.0, "frequency": 0.1}
    for name in ("domainstudio", "domainstudio_released"):
        assert recipe(name) == (800, 5e-6, "weights", weights)
    assert recipe("textual_inversion") == (3000, 2e-3, "tokens", {})


def test_methods_that_share_a_timestep_go_on_doing_so():
    apart = {name for name, method in METHODS.items() if not method.shares_timestep}

    assert apart == {
        "dreambooth", "dreambooth_lora", "domainstudio", "domainstudio_released", "domainstudio_style",
        "domainstudio_style_released", "textual_inversion",
    }  # fmt: skip
    order = batches([part(latents(3, 1))], 2, generator(0, "order"))
    process = ToyDenoiser(network()).process
    found = draw(next(order), process, generator(0, "noise"))["domain"]
    assert len(set(found.target.sigma.tolist())) == 1 and found.others is None
