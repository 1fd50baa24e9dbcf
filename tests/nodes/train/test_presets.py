"""What is left open goes by the model and the preset; what a person types stays, and is warned of if far."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.data.test_source_images import draw
from tests.nodes.test_real_host import node
from tests.nodes.tiny import host_module, tiny_model
from tests.nodes.training import erase, train
from tools.make.workflows import DEMO


def options(nodes, **changes):
    """Return what a Domain Training Options gives, which is fresh but for some changes."""
    kind = nodes("nodes.train.training_options").DomainGalleryOptions
    fresh = {part.id: part.default for part in kind.define_schema().inputs}
    return kind.execute(**fresh | changes)[0]


def length(nodes, method, options=None, steps=0, rate=0.0, model=None):
    plan = nodes("nodes.train.length").plan_on(model or tiny_model(), options, method, steps, rate, 0)
    return plan.optimizer.steps, plan.optimizer.learning_rate


@pytest.mark.parametrize(("method", "papers"), [("erasure", (500, 1e-4)), ("domaingallery", (1000, 5e-5))])
def test_what_is_left_open_is_the_papers(nodes, method, papers):
    """Without options, and with those of a fresh node."""
    assert length(nodes, method) == length(nodes, method, options(nodes)) == papers


def test_a_preset_says_what_is_left_open(nodes):
    look, low = (options(nodes, preset=name) for name in ("look", "low memory"))

    assert length(nodes, "erasure", look) == (167, 2e-4)
    assert length(nodes, "domaingallery", look) == (333, 1e-4)
    assert length(nodes, "domaingallery", low) == (1000, 5e-5)
    assert look.weights["similarity"] == low.weights["similarity"] == 0
    assert [look.values[name] for name in ("batch_size", "accumulation")] == [4, 1]
    assert [low.values[name] for name in ("batch_size", "accumulation")] == [1, 4]


def test_what_is_typed_stays_whatever_the_preset(nodes):
    typed = {"batch_size": 3, "accumulation": 2, "similarity_weight": 0.5}
    look = options(nodes, preset="look", **typed)

    assert length(nodes, "domaingallery", look, steps=20, rate=3e-5) == (20, 3e-5)
    assert length(nodes, "domaingallery", look, steps=20) == (20, 1e-4)
    assert [look.values[name] for name in ("batch_size", "accumulation")] == [3, 2]
    assert look.weights["similarity"] == 0.5
    assert options(nodes, similarity_weight=0.0).weights["similarity"] == 0


def test_a_node_without_options_and_one_with_another_preset_train_as_long_as_they_say(nodes, monkeypatch):
    family = nodes("nodes.host.families").FAMILIES["stable diffusion"]
    short = {"erasure": (6, 1e-3), "domaingallery": (3, 1e-3)}
    monkeypatch.setattr(type(family), "lengths", short)
    model = tiny_model()

    erased = erase(nodes, model, steps=0, learning_rate=0.0)
    learned = train(
        nodes, model, steps=0, learning_rate=0.0, erased=erased[0], options=options(nodes, preset="look")
    )

    assert [len(result.ui["losses"][0]["total"]) for result in (erased, learned)] == [6, 1]


def test_the_number_of_source_images_is_that_of_the_preset(nodes, output):
    look = options(nodes, preset="look")
    look.preset = replace(look.preset, sources=3)

    [drawn] = draw(nodes, count=0, options=look)
    [typed] = draw(nodes, count=2, options=look)

    assert (len(drawn), len(typed)) == (3, 2)


def test_the_demo_model_has_numbers_of_its_own(nodes, demo):
    """Those with which the templates teach it."""
    family = nodes("nodes.host.families").family_of(demo.model)

    assert family.name == "sketchbook"
    assert length(nodes, "erasure", model=demo.model) == (DEMO.erase_steps, DEMO.erase_rate)
    assert length(nodes, "domaingallery", model=demo.model) == (DEMO.train_steps, DEMO.train_rate)
    assert length(nodes, "personalization", model=demo.model) == (DEMO.joint_steps, DEMO.joint_rate)
    assert length(nodes, "dreambooth_lora", model=demo.model) == (DEMO.subject_steps, DEMO.subject_rate)
    d = family.drawing
    assert (d.size, d.steps, d.cfg) == (DEMO.size, DEMO.sampling_steps, DEMO.cfg)
    assert (d.sampler, d.scheduler) == (DEMO.sampler_name, DEMO.scheduler)


@pytest.mark.parametrize(
    ("rate", "said"),
    [(3e-3, "60 times the paper's 5e-05"), (1e-6, "50 times less than the paper's 5e-05"), (4e-4, "")],
)
def test_a_rate_far_from_the_papers_is_warned_of_for_models_of_its_size(nodes, monkeypatch, rate, said):
    far, model = nodes("nodes.host.far"), tiny_model()

    assert far.far_rate(model, "domaingallery", rate) == ""
    monkeypatch.setattr(far, "LARGE", 1000)
    found = far.far_rate(model, "domaingallery", rate)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    ("optimizer", "given", "taken", "said"),
    [
        ("prodigy", 0, 1.0, ""),
        ("prodigy", 5e-5, 5e-5, "is far from 1, which is usual for prodigy: it is a factor there"),
        ("prodigy", 0.5, 0.5, ""),
        ("adafactor", 0, 1e-2, ""),
        ("adafactor", 1.0, 1.0, "is far from 0.01, which is usual for adafactor: it is a share"),
        ("adamw_schedulefree", 0, 5e-5, ""),
    ],
)
def test_optimizers_have_rates_of_their_own(nodes, optimizer, given, taken, said):
    """They are taken where the learning rate is left open; one that was typed stays."""
    found = length(nodes, "domaingallery", options(nodes, optimizer=optimizer), rate=given)[1]
    far = nodes("nodes.host.far").far_rate(tiny_model(), "domaingallery", found, optimizer)

    assert found == taken
    assert bool(far) == bool(said) and said in far


def test_a_rate_far_from_what_a_small_family_has_is_warned_of_too(nodes, demo):
    """The paper's own rate teaches the demo model nothing."""
    far = nodes("nodes.host.far").far_rate

    assert "40 times less than the 0.002 of sketchbook" in far(demo.model, "domaingallery", 5e-5)
    assert far(demo.model, "erasure", 6e-3) == ""


def test_a_size_far_from_that_of_the_model_is_warned_of(nodes, monkeypatch, caplog, output):
    monkeypatch.setattr(nodes("nodes.host.far"), "LARGE", 1000)
    far = nodes("nodes.host.far").far_size
    model = tiny_model()

    assert far(model, 512, 512) == far(model, 768, 512) == far(model, 384, 512) == ""
    assert far(model, 1024, 1024) and far(model, 256, 256)
    with caplog.at_level(logging.WARNING):
        draw(nodes, count=1)
    assert "64 x 64 pixels are far from the 512 x 512 that suit this model" in caplog.text


def test_rates_of_later_trainings_are_warned_of_before_the_first_image_is_drawn(nodes, monkeypatch, caplog):
    """Of those on the same MODEL, also behind a LoRA; each is named, and one of another MODEL is not."""
    monkeypatch.setattr(nodes("nodes.host.far"), "LARGE", 1000)
    preflight = nodes("nodes.ahead.preflight")
    monkeypatch.setattr(preflight, "running_outputs", lambda prompt: ["save"])
    for cls in nodes("nodes").NODES:
        monkeypatch.setitem(host_module("nodes").NODE_CLASS_MAPPINGS, cls.__name__, cls)
    prompt = {
        "loader": node("CheckpointLoaderSimple", ckpt_name="x"),
        "other": node("CheckpointLoaderSimple", ckpt_name="y"),
        "lora": node("LoraLoaderModelOnly", model=["loader", 0], lora_name="x", strength_model=1.0),
        "here": node("DomainGallerySourceImages", model=["loader", 0]),
        "images": node("EmptyImage", width=64, height=64, batch_size=3, color=0),
        "data": node("DomainGalleryDataset", source_images=["here", 0], target_images=["images", 0]),
        "first": node("DomainGalleryErase", model=["lora", 0], dataset=["data", 0], learning_rate=6e-3),
        "second": node(
            "DomainGalleryTrain", model=["other", 0], dataset=["data", 0], erased=["first", 0],
            learning_rate=6e-3,
        ),
        "third": node(
            "DomainGalleryTrain", model=["loader", 0], dataset=["data", 0], erased=["second", 0],
            learning_rate=0,
        ),
        "save": node("DomainGallerySaveLora", lora=["third", 0], name="x", key_format="kohya"),
    }  # fmt: skip
    running = SimpleNamespace(hidden=SimpleNamespace(prompt=prompt, unique_id="here"))

    with caplog.at_level(logging.WARNING):
        preflight.check_ahead(running, {"model": tiny_model()})
        preflight.check_ahead(running, {"model": torch.zeros(1)})

    [record] = caplog.records
    assert record.message.startswith("DomainGalleryErase (node first): The learning rate 0.006 is 60 times")

    caplog.clear()
    prompt["prodigy"] = node("DomainGalleryOptions", optimizer="prodigy")
    for name, rate in (("first", 1.0), ("third", 1e-4)):
        prompt[name]["inputs"] |= {"options": ["prodigy", 0], "learning_rate": rate}
    with caplog.at_level(logging.WARNING):
        preflight.check_ahead(running, {"model": tiny_model()})

    [record] = caplog.records
    assert record.message.startswith(
        "DomainGalleryTrain (node third): The learning rate 0.0001 is far from 1"
    )
