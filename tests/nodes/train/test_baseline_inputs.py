"""The fields of Train Baseline, and what cannot work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.nodes import training
from tests.nodes.baselines import FIELDS, baseline, chosen, on_demo
from tests.nodes.tiny import same, tiny_dataset, tiny_model, weights_of


class StopsTheGradient(torch.nn.Module):
    def decode(self, latents):
        return latents[:, :3].detach().repeat_interleave(8, 2)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no method", "Expected method to be one of DreamBooth, DreamBooth LoRA, .*, got 'LoRA'"),
        ("no steps", "Expected steps to be a whole number"),
        ("no clip", "Expected the text encoder of the model, .*got none. Connect clip"),
        ("long word", "Expected a word of one token to begin with, got 'photosynthesiser' with"),
        ("two words", "Expected a word of one token to begin with, got 'red dog' with 2"),
        (
            "many vectors",
            "Expected captions of at most 24 tokens, got a longer one with 20",
        ),
        ("no VAE", "Expected the VAE of the model, .* got none. Connect"),
        ("no gradient", "Expected a VAE that decodes pictures with a gradient, got one that does not"),
        ("quantised", "Expected a model in float32, float16 or bfloat16 to train all its weights, got"),
        ("two images", "Expected a batch size of at least 3 for the image_similarity term, got 2"),
        ("other clip", r"text encoder of this model \(16 wide\), got 128"),
    ],
)
def test_what_cannot_work_is_named_and_changes_nothing(demo, nodes, errors, case, message, monkeypatch):
    model, given, changes = demo.model, demo, {}
    method = "DomainStudio" if case in ("no VAE", "no gradient", "two images") else "Textual Inversion"
    if case == "no method":
        method = "LoRA"
    elif case == "no steps":
        changes = {"steps": "many"}
    elif case == "no clip":
        changes = {"clip": None}
    elif case in ("long word", "two words"):
        changes = {"word": "photosynthesiser" if case == "long word" else " red dog "}
    elif case == "many vectors":
        changes = {"vectors": 20}
    elif case == "no VAE":
        changes = {"dataset": replace(demo.dataset, vae=None)}
    elif case == "no gradient":
        monkeypatch.setattr(demo.vae, "first_stage_model", StopsTheGradient())
    elif case == "quantised":
        method, model = "DreamBooth", tiny_model()
        layer = model.model.diffusion_model.middle_block[1].proj_in
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
        changes = {"prompts": training.tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    elif case == "two images":
        changes = {"options": nodes("nodes.sockets").TrainingOptions(batch_size=2)}
    elif case == "other clip":
        model = tiny_model()
        changes = {"prompts": training.tiny_prompts(nodes), "dataset": tiny_dataset(nodes)}
    given = SimpleNamespace(**{**vars(demo), "model": model})
    before = weights_of(model)

    with pytest.raises(errors.DomainGalleryError, match=message):
        on_demo(given, method, **changes)
    assert same(before, weights_of(model)) and "load_model" not in vars(demo.clip)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "Textual Inversion"}, "Expected the text encoder of the model, .*got none. Connect clip"),
        ({"method": "DreamBooth", "method.steps": 0}, "Expected steps to be a whole number from 1"),
        ({"method": "DreamBooth", "method.copies": "int8"}, "Expected copies to be one of float32, bfloat16"),
        (
            {"method": "DomainStudio", "options": ["small", 0]},
            "Expected a batch size of at least 3 for the image_similarity term, got 2",
        ),
        ({"method": "DreamBooth"}, None),
        ({"method": "DomainStudio", "method.variant": "released"}, None),
        ({"method": "Textual Inversion", "method.clip": ["demo", 1]}, None),
        ({"method": ["other", 0]}, None),
    ],
)
def test_a_graph_is_looked_at_before_anything_is_drawn(nodes, errors, changes, message):
    ahead, graphs = nodes("nodes.ahead.preflight"), nodes("nodes.ahead.prompt_graph")
    kept = {part.id: part.default for part in nodes("nodes.train.training_options").DomainGalleryOptions
            .define_schema().inputs}  # fmt: skip
    prompt = {
        "words": {
            "class_type": "DomainGalleryPrompts",
            "inputs": {"clip": ["demo", 1], "identifier": "sks", "category": "face"},
        },
        "demo": {"class_type": "DomainGalleryLoadDemo"},
        "other": {"class_type": "NoSuchNode"},
        "small": {"class_type": "DomainGalleryOptions", "inputs": kept | {"batch_size": 2}},
        "train": {"class_type": "DomainGalleryBaseline", "inputs": {"prompts": ["words", 0], **changes}},
    }

    def look():
        ahead.check_graph(graphs.PromptGraph(prompt, ["train"]), "train")

    if message is None:
        look()
    else:
        with pytest.raises(errors.InputError, match=message):
            look()


@pytest.mark.parametrize(("kind", "name"), [("SaveLora", "../x"), ("SaveEmbedding", "a b")])
def test_names_of_files_are_looked_at_before_anything_is_drawn(nodes, errors, kind, name):
    graph = nodes("nodes.ahead.prompt_graph").PromptGraph(
        {"save": {"class_type": f"DomainGallery{kind}", "inputs": {"name": name}}}, ["save"]
    )

    with pytest.raises(errors.InputError, match=r"inside the folder output/loras|that a prompt can hold"):
        nodes("nodes.ahead.preflight").check_graph(graph, "save")


def test_what_all_weights_take_is_told_and_warned_of_where_there_is_less(
    nodes, model, monkeypatch, caplog, said
):
    own = nodes("nodes.train.trained")
    monkeypatch.setattr(own.comfy.model_management, "get_free_memory", lambda *_: 2**20)

    baseline(nodes, model, "DreamBooth", steps=1)

    numbers = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
    told = f"All weights, their gradients and moments take {numbers * 16 / 2**30:.2g} GB beside the model"
    assert told in caplog.text and "set optimizer to adamw8bit" in caplog.text
    assert any(line.startswith(f"{told}.") for line in said)


def test_each_method_shows_its_own_fields(nodes):
    [choice] = [
        part for part in nodes("nodes.train.baseline").DomainGalleryBaseline.define_schema().inputs
        if part.id == "method"
    ]  # fmt: skip

    shown = {option.key: [part.id for part in option.inputs] for option in choice.options}

    length = {"steps", "learning_rate"}
    sockets = {"clip", "text_encoder", "style_prompts", "style_dataset"}
    assert {name: set(ids) - sockets for name, ids in shown.items()} == {
        name: length | fields.keys() for name, fields in FIELDS.items()
    }
    assert [name for name, ids in shown.items() if "clip" in ids] == ["Textual Inversion"]
    assert [name for name, ids in shown.items() if "text_encoder" in ids] == ["DreamBooth", "DreamBooth LoRA"]
    assert all(part.tooltip.endswith(".") for option in choice.options for part in option.inputs)


def test_what_a_browser_sends_comes_as_the_fields_of_the_chosen_method(nodes, comfy):
    """By the functions with which the host gathers inputs; the fields of other methods are left out."""
    from comfy_api.latest import _io

    node = nodes("nodes.train.baseline").DomainGalleryBaseline
    fields = chosen("Textual Inversion")
    sent = {f"method.{name}": value for name, value in fields.items()} | {"method": fields["method"]}
    del sent["method.method"]

    found, _, known = _io.get_finalized_class_inputs(node.INPUT_TYPES(), sent | {"method.copies": "float32"})
    given = _io.build_nested_inputs(sent, known)

    assert given == {"method": fields | {"clip": None}}
    assert {"method.word", "method.steps"} <= found["required"].keys() and "method.clip" in found["optional"]
    assert "method.copies" not in found["required"] | found["optional"]
