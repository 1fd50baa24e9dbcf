"""What a training of the graph cannot work with is refused before the first source image is drawn."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.nodes import training
from tests.nodes.data.test_several_categories import PlainVae
from tests.nodes.test_real_host import graph, node, run_options
from tests.nodes.tiny import tiny_dataset, tiny_model, tiny_prompts
from tools.host.client import PromptError


def change(at, **inputs):
    return lambda prompt: prompt[at]["inputs"].update(inputs)


def other_options(prompt):
    prompt["other"] = node("DomainGalleryOptions", **prompt["options"]["inputs"] | {"rank": 1, "alpha": 1.0})
    prompt["train"]["inputs"]["options"] = ["other", 0]


def no_names_for_it(prompt):
    prompt["options"]["inputs"]["adapter"] = "loha"
    prompt["save"]["inputs"]["key_format"] = "diffusers"


def named_run(prompt):
    prompt["run"] = run_options(run_name="../elsewhere")
    prompt["train"]["inputs"]["run_options"] = ["run", 0]


def two_categories(prompt):
    prompt["two"] = node("DomainGalleryPrompts", clip=["demo", 1], identifier="sks", category="face, house")
    prompt["train"]["inputs"]["prompts"] = ["two", 0]


def same_words(prompt):
    prompt["again"] = node("DomainGalleryPrompts", clip=["demo", 1], identifier="sks", category="face")
    prompt["erase"]["inputs"]["subject_prompts"] = ["again", 0]


WRONG = [
    (change("source", count=2), "at least 3 source images of each category for the similarity term, got 2"),
    (change("target", count=1), "at least 2 images of the domain, got 1"),
    (change("options", batch_size=2), "batch size of at least 3 for the similarity term, got 2"),
    (change("dataset", held_out=3), "learn from besides 3 held out, got 3 in all"),
    (change("save", name="../sketch"), "name inside the folder output/loras, got '../sketch'"),
    (change("source", width=256, height=256), "(number 1) of about 256 x 256 pixels"),
    (other_options, "rank of at least 2, that of the LoRA of the first stage, got 1"),
    (no_names_for_it, "LoRA or a DoRA for the diffusers format, got a LoHa, which it has no names for. Save"),
    (named_run, "inside the folder output/domaingallery/checkpoints, got '../elsewhere'"),
    (two_categories, "a dataset of the categories face, house, got one without categories"),
    (
        change("options", optimizer="adamw_schedulefree", schedule="cosine"),
        "the schedule constant and ema 0 for the optimizer 'adamw_schedulefree'",
    ),
    (same_words, "other words than those of the first Domain Prompts, got 'a sks face' twice"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_it_is_refused_at_the_first_node_and_nothing_is_drawn(host, spoil, message):
    """The message names the node where the trouble is."""
    prompt = graph()
    prompt["source"]["inputs"]["seed"] = 987_654  # of no other test
    spoil(prompt)
    folder = host.output / "domaingallery" / "source"
    before = set(folder.rglob("*.safetensors"))
    drawn = []

    with pytest.raises(PromptError) as caught:
        host.client.run(prompt, on_event=lambda event: drawn.append(event.kind == "progress"))

    assert message in str(caught.value)
    assert str(caught.value).startswith(("node source", "node run"))  # options are made before
    assert "domaingallery.InputError" in str(caught.value)
    assert set(folder.rglob("*.safetensors")) == before and not any(drawn)


def test_what_only_running_tells_is_left_to_the_nodes(host):
    """Images of a node that is not known, a number from elsewhere, a training that is not run."""
    prompt = graph()
    prompt["inverted"] = node("ImageInvert", image=["target", 0])
    prompt["dataset"]["inputs"]["target_images"] = ["inverted", 0]
    prompt["number"] = node("PrimitiveInt", value=3)
    prompt["source"]["inputs"]["count"] = ["number", 0]
    prompt["not run"] = node(
        "DomainGalleryTrain", **prompt["train"]["inputs"] | {"steps": 2, "options": ["small", 0]}
    )
    prompt["small"] = node("DomainGalleryOptions", **prompt["options"]["inputs"] | {"batch_size": 1})

    assert "show" in host.client.run(prompt)


def erase(nodes, cls):
    training.execute(cls, nodes, tiny_model())


def personalize(nodes, cls):
    subject = {"subject_prompts": training.subject_prompts(nodes), "subject_dataset": tiny_dataset(nodes, 6)}
    training.execute(cls, nodes, tiny_model(), subject_weight=1.0, **subject)


def draw(nodes, cls):
    cls.execute(
        tiny_model(), PlainVae(), tiny_prompts(nodes), count=1, width=64, height=64, steps=1, cfg=1.0,
        sampler_name="euler", scheduler="normal", batch_size=1, seed=0,
    )  # fmt: skip


def encode(nodes, cls):
    cls.execute([PlainVae()], [torch.rand(4, 32, 32, 3)])


@pytest.mark.parametrize(
    ("room", "name", "execute"),
    [
        ("data.source_images", "DomainGallerySourceImages", draw),
        ("data.dataset", "DomainGalleryDataset", encode),
        ("train.training", "DomainGalleryErase", erase),
        ("train.training", "DomainGalleryTrain", erase),
        ("train.personalization", "DomainGalleryPersonalize", personalize),
    ],
)
def test_each_node_looks_ahead_before_it_works(nodes, errors, monkeypatch, said, room, name, execute):
    """Any may be the first that runs, as the host keeps what those before it gave."""
    monkeypatch.setattr(nodes("nodes.ahead.preflight"), "running_outputs", lambda prompt: ["save"])
    prompt = {"here": node(name), "save": node("DomainGallerySaveLora", lora=["here", 0], name="../x")}
    hidden = SimpleNamespace(prompt=prompt, unique_id="here")
    running = type(name, (getattr(nodes(f"nodes.{room}"), name),), {"hidden": hidden})

    with pytest.raises(errors.InputError, match=r"name inside the folder output"):
        execute(nodes, running)

    assert said == []


def test_an_optimizer_without_its_package_is_refused_before_anything_is_drawn(
    nodes, errors, monkeypatch, said
):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    monkeypatch.setattr(nodes("nodes.ahead.preflight"), "running_outputs", lambda prompt: ["train"])
    prompt = {
        "here": node("DomainGalleryDataset"),
        "options": node("DomainGalleryOptions", optimizer="prodigy"),
        "train": node("DomainGalleryTrain", dataset=["here", 0], options=["options", 0]),
    }
    cls = nodes("nodes.data.dataset").DomainGalleryDataset
    running = type("Running", (cls,), {"hidden": SimpleNamespace(prompt=prompt, unique_id="here")})

    with pytest.raises(errors.InputError, match=r"pip install prodigyopt\)"):
        encode(nodes, running)

    assert said == []
