"""Joint personalization and several categories through the nodes, on a host MODEL."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.nodes.tiny import (
    conditioning,
    host_module,
    same,
    tiny_dataset,
    tiny_latents,
    tiny_model,
    tiny_part,
    tiny_prompts,
    weights_of,
)
from tests.nodes.training import erase, personalize, subject_prompts, train


def test_a_domain_and_a_subject_are_learned_together(nodes, model):
    before = weights_of(model)

    result = personalize(nodes, model)

    terms = {"target", "prior", "disentanglement", "similarity", "subject", "subject_prior", "total"}
    assert set(result.ui["losses"][0]) == terms
    assert json.loads(result[0].metadata["domaingallery.plan"])["method"]["name"] == "personalization"
    assert result[0].metadata["modelspec.trigger_phrase"] == "a sks olis face"
    assert same(before, weights_of(model))


def test_without_weight_the_subject_is_not_there(nodes, model):
    """The LoRA is that of the domain, bit for bit."""
    assert same(personalize(nodes, model, subject_weight=0.0)[0], train(nodes, model)[0])
    assert not same(personalize(nodes, model)[0], train(nodes, model)[0])


def test_it_begins_with_both_identifiers_erased(nodes, model):
    """Erasing a second identifier gives another LoRA, from which personalization begins."""
    one = erase(nodes, model)[0]
    both = erase(nodes, model, subject_prompts=subject_prompts(nodes))[0]

    result = personalize(nodes, model, erased=both)

    assert not same(one, both)
    assert result[0].keys() == both.keys()
    assert not same(personalize(nodes, model, erased=one)[0], result[0])


def two_categories(nodes):
    house = {"category": "house", "target": conditioning(21), "source": conditioning(22)}
    parts = tiny_part(nodes, category="face"), tiny_part(nodes, seed=7, category="house")
    return tiny_prompts(nodes, house), nodes("nodes.sockets").LatentDataset(parts)


def alone(prompts, dataset):
    """Return the inputs of the first category."""
    first = replace(prompts, categories=prompts.categories[:1])
    return {"prompts": first, "dataset": replace(dataset, parts=dataset.parts[:1])}


@pytest.mark.parametrize("stage", [erase, train])
def test_a_domain_of_two_categories_trains(nodes, model, stage):
    prompts, dataset = two_categories(nodes)

    both = stage(nodes, model, prompts=prompts, dataset=dataset, steps=3)[0]
    first = stage(nodes, model, **alone(prompts, dataset), steps=3)[0]

    assert all(torch.isfinite(tensor).all() for tensor in both.values())
    assert not same(both, first)
    assert both.metadata["modelspec.trigger_phrase"] == "a sks face, a sks house"


def test_a_single_category_is_as_without_its_name(nodes, model):
    """Bit for bit: the word changes nothing."""
    named = tiny_dataset(nodes, category="face")

    assert same(train(nodes, model, dataset=named)[0], train(nodes, model)[0])


def test_the_same_category_twice_takes_turns(nodes, model):
    """A step reads one of the parts: of two steps, the first is that of the first part alone."""
    prompts, dataset = two_categories(nodes)

    both = train(nodes, model, prompts=prompts, dataset=dataset, steps=1)[0]
    first = train(nodes, model, **alone(prompts, dataset), steps=1)[0]

    assert same(both, first)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("same word", "different identifiers for domain and subject, got 'sks' for both"),
        ("no images", "images of the subject, got a dataset without them"),
        ("two sizes", "a subject of one category, with images of one size"),
        ("other size", "domain and subject latents of one size"),
        ("other words", "dataset of the categories face, house, got one of house"),
        ("no words", "dataset of the categories face, house, got one without categories"),
        ("subject words", "dataset of the categories face, got one of cat"),
        ("no source", "source images of 'cat', got those of 'face' alone"),
        ("both words", "other words than those of the first Domain Prompts, got 'a sks face' twice"),
    ],
)
def test_what_cannot_work_is_named(nodes, errors, model, case, message):
    data, words, changes = tiny_dataset(nodes), subject_prompts(nodes), {}
    examples = nodes("domaingallery_core.data.examples").Examples
    if case == "same word":
        words = subject_prompts(nodes, identifier="SKS")
    elif case == "no images":
        data = tiny_dataset(nodes, target=None)
    elif case == "two sizes":
        data = replace(data, parts=2 * data.parts)
    elif case == "subject words":
        data = tiny_dataset(nodes, category="cat")
    elif case == "other size":
        small = {"source": examples(torch.zeros(3, 4, 4, 4)), "target": examples(torch.zeros(2, 4, 4, 4))}
        data = tiny_dataset(nodes, **small)
    elif case == "other words":
        prompts, dataset = two_categories(nodes)
        changes = {"prompts": prompts, "dataset": replace(dataset, parts=dataset.parts[1:])}
    elif case == "no words":
        changes = {"prompts": two_categories(nodes)[0]}

    with pytest.raises(errors.InputError, match=message):
        if case == "no source":
            erase(nodes, model, subject_prompts=subject_prompts(nodes, category="cat"))
        elif case == "both words":
            words = subject_prompts(nodes, identifier="sks")
            erase(nodes, model, subject_prompts=words, subject_dataset=data)
        else:
            personalize(nodes, model, subject_prompts=words, subject_dataset=data, **changes)


def test_prompts_of_another_text_encoder_are_named(nodes, errors, model):
    wide = tiny_prompts(nodes, target=[[torch.zeros(1, 6, 24), {}]])

    with pytest.raises(errors.InputError, match=r"text encoder of this model \(16 wide\), got 24"):
        train(nodes, model, prompts=wide)


def test_latents_of_another_family_are_named(nodes, errors, model):
    examples = nodes("domaingallery_core.data.examples").Examples
    data = tiny_dataset(nodes, source=examples(torch.zeros(3, 16, 8, 8)), target=None)

    with pytest.raises(errors.InputError, match=r"VAE of this model \(4 channels\), got 16 channels"):
        erase(nodes, model, dataset=data)


def test_deviations_are_scaled_as_the_model_scales_latents(nodes, model):
    data, examples = nodes("nodes.train.data"), nodes("domaingallery_core.data.examples").Examples
    latents, deviation = tiny_latents(5), torch.rand(5, 4, 8, 8)

    found = data.seen_by(model, examples(latents, deviation))

    torch.testing.assert_close(found.deviation, deviation * 0.18215)
    torch.testing.assert_close(found.latents, latents.clone() * 0.18215)


@pytest.mark.parametrize("name", ["SD15", "SDXL", "SD3", "Flux", "SC_B"])
def test_the_scale_of_a_deviation_is_that_of_the_model(nodes, name):
    """What the model sees of a latent a deviation away, less what it sees of the latent."""
    form = getattr(host_module("comfy.latent_formats"), name)()
    model = tiny_model(latent_format=type(form))
    channels, data = form.latent_channels, nodes("nodes.train.data")
    latents, deviation = torch.randn(3, channels, 4, 4).double(), torch.rand(3, channels, 4, 4).double()

    expected = (form.process_in(latents + deviation) - form.process_in(latents)).float()

    torch.testing.assert_close(deviation.float() * data.deviation_scale(model, channels), expected)


def test_each_size_has_the_conditions_of_its_size(nodes):
    """Models such as SDXL read the size of an image; with buckets it differs between the parts."""
    data, sockets = nodes("nodes.train.data"), nodes("nodes.sockets")
    examples = nodes("domaingallery_core.data.examples").Examples
    model, prompts = tiny_model(pooled=5), tiny_prompts(nodes, pooled=5)
    plan = sockets.TrainingOptions().plan("erasure", 1, 1e-3, 0)
    square, wide = (
        sockets.LatentPart(source=examples(torch.zeros(3, 4, *size))) for size in ((8, 8), (4, 16))
    )

    pairs = {"domain": data.with_prompts(prompts, sockets.LatentDataset((square, wide)))}
    parts = data.training_parts(model, nodes("nodes.host.model").HostDenoiser(model), pairs, plan)

    sizes = [part.prompts.source.tensors["y"][0, -2:].tolist() for part in parts]
    assert [part.name for part in parts] == ["sks face, 8 x 8 latents", "sks face, 16 x 4 latents"]
    assert [part.source.latents.shape[2:] for part in parts] == [(8, 8), (4, 16)]
    assert sizes == [[1.0, 1.0], [2.0, 0.5]]
