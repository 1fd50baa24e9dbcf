"""What a file of a LoRA says about itself, in the fields that LoRA managers show."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.nodes.tiny import host_module, tiny_dataset, tiny_prompts
from tests.nodes.training import STEPS, erase, personalize, train


def metadata_of(nodes, lora, name="sketch"):
    path = nodes("nodes.files.saving").DomainGallerySaveLora.execute(lora, name, "kohya")[0]
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_managers_find_what_is_true_of_a_training(nodes, model):
    model.cached_patcher_init = (print, ("/models/checkpoints/base model.safetensors", False))

    found = metadata_of(nodes, train(nodes, model, seed=7)[0])

    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "sks face",
        "modelspec.trigger_phrase": "a sks face",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_network_dropout": "0",
        "ss_sd_model_name": "base model.safetensors",
        "ss_output_name": "sketch",
        "ss_steps": str(STEPS),
        "ss_max_train_steps": str(STEPS),
        "ss_learning_rate": "0.001",
        "ss_unet_lr": "0.001",
        "ss_lr_scheduler": "constant",
        "ss_optimizer": "adamw",
        "ss_seed": "7",
        "ss_resolution": "(64, 64)",
        "ss_num_train_images": "3",
        "ss_num_reg_images": "5",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"sks face": {"a sks face": 3}}


def test_nothing_is_said_that_is_not_known(nodes, model):
    """Of this model no version, no file and no picture; of no training when it was."""
    found = metadata_of(nodes, erase(nodes, model)[0])

    unknown = ("architecture", "implementation", "thumbnail", "date", "author")
    assert not found.keys() & {f"modelspec.{name}" for name in unknown}
    assert not found.keys() & {"ss_base_model_version", "ss_sd_model_name", "ss_training_started_at"}
    assert (found["ss_num_train_images"], found["ss_num_reg_images"]) == ("0", "5")
    assert json.loads(found["ss_tag_frequency"]) == {"sks face": {"a sks face": 5}}


def test_the_words_of_a_subject_and_of_every_category_are_counted(nodes, model):
    joint = metadata_of(nodes, personalize(nodes, model)[0])

    words = {"sks face": {"a sks face": 3}, "olis face": {"a olis face": 3}}
    assert json.loads(joint["ss_tag_frequency"]) == words
    assert (joint["ss_num_train_images"], joint["ss_num_reg_images"]) == ("6", "11")


def test_the_last_preview_is_in_the_file(nodes, model, output):
    """Small, as a JPEG, and in the files of equal trainings the same."""
    options = nodes("nodes.sockets").RunOptions(preview_every=1, preview_count=2, preview_steps=1)
    node = nodes("nodes.files.saving").DomainGallerySaveLora

    files = [
        Path(node.execute(train(nodes, model, run_options=options)[0], "x", "kohya")[0]) for _ in range(2)
    ]

    with safe_open(files[0], framework="pt") as file:
        kind, _, text = file.metadata()["modelspec.thumbnail"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert kind == "data:image/jpeg;base64" and picture.format == "JPEG"
    assert 0 < max(picture.size) <= nodes("nodes.train.metadata").THUMBNAIL
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_large_picture_is_made_small_and_the_last_step_is_taken(nodes):
    columns = {0: [Image.new("RGB", (600, 300), "red")], 5: [Image.new("RGB", (600, 300), "blue")]}

    text = nodes("nodes.train.metadata").thumbnail(columns)["modelspec.thumbnail"]

    picture = Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))
    assert picture.size == (256, 128) and picture.getpixel((9, 9))[2] > 200 > 50 > picture.getpixel((9, 9))[0]
    assert (
        nodes("nodes.train.metadata").thumbnail({}) == nodes("nodes.train.metadata").thumbnail({0: []}) == {}
    )


@pytest.mark.parametrize(
    ("width", "kind", "expected"),
    [
        (768, "EPS", ("stable-diffusion-v1/lora", "sd_v1", "False")),
        (768, "V_PREDICTION", ("stable-diffusion-v1/lora", "sd_v1_v", "False")),
        (1024, "EPS", ("stable-diffusion-v2-512/lora", "sd_v2", "True")),
        (1024, "V_PREDICTION", ("stable-diffusion-v2-768-v/lora", "sd_v2_v", "True")),
        (16, "EPS", (None, None, None)),
    ],
)
def test_each_version_of_stable_diffusion_has_its_words(comfy, nodes, width, kind, expected):
    base = SimpleNamespace(
        model_config=SimpleNamespace(unet_config={"context_dim": width}),
        model_type=host_module("comfy.model_base").ModelType[kind],
    )

    found = nodes("nodes.host.families").FAMILIES["stable diffusion"].architecture(base)

    assert tuple(map(found.get, ("modelspec.architecture", "ss_base_model_version", "ss_v2"))) == expected


def test_a_flow_has_no_word_for_what_it_predicts_and_sdxl_has_its_own(comfy, nodes):
    tiny, family = host_module("tests.nodes.tiny").tiny_model("FLOW"), nodes("nodes.host.families").FAMILIES

    assert "modelspec.prediction_type" not in nodes("nodes.train.metadata").of_model(tiny)
    found = family["stable diffusion xl"].architecture(None)
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"


def test_pictures_that_fail_cost_no_lora(nodes, model, monkeypatch, said):
    """The node says that there is none in the file."""
    monkeypatch.setattr(nodes("nodes.train.metadata").Image.Image, "save", None)
    options = nodes("nodes.sockets").RunOptions(preview_every=2, preview_count=1, preview_steps=1)

    trained = train(nodes, model, run_options=options)

    assert "modelspec.thumbnail" not in trained[0].metadata
    assert "Expected to make a small picture for the file" in trained.ui["text"][0]


def test_resolution_is_that_of_the_images(nodes, model):
    examples = nodes("domaingallery_core.data.examples").Examples
    dataset = tiny_dataset(
        nodes, source=examples(torch.zeros(4, 4, 16, 8)), target=examples(torch.ones(3, 4, 16, 8))
    )
    pairs = {"domain": nodes("nodes.train.data").with_prompts(tiny_prompts(nodes), dataset)}

    plan = nodes("nodes.sockets").TrainingOptions().plan("domaingallery", 10, 1e-4, 0)
    found = nodes("nodes.train.metadata").of_data(model, pairs, plan)

    assert (found["modelspec.resolution"], found["ss_resolution"]) == ("64x128", "(64, 128)")
