"""What a training cannot work with ends in a sentence that says what to do, and the MODEL is as it was."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.nodes.files.test_saving import trained
from tests.nodes.host.test_casting import model_in
from tests.nodes.tiny import conditioning, host_module, same, tiny_model, tiny_prompts, weights_of
from tests.nodes.tiny_transformers import tiny_flux
from tests.nodes.training import train


def refused(nodes, model, error, message, **changes):
    """Expect a training to be refused by a sentence, with the MODEL as it was."""
    before, modules = weights_of(model), [(name, id(m)) for name, m in model.model.named_modules()]

    with pytest.raises(error, match=message) as info:
        train(nodes, model, **changes)

    assert str(info.value).startswith("Expected ") and str(info.value).endswith(".")
    assert same(before, weights_of(model))
    assert modules == [(name, id(module)) for name, module in model.model.named_modules()]


@pytest.mark.parametrize("key_format", ["comfyui", "kohya", "diffusers"])
def test_a_lora_of_another_family(nodes, errors, model, key_format):
    """In each format, of Flux for a UNet."""
    lora = trained(nodes, tiny_flux(), targets="linear")
    form = nodes("domaingallery_core.files.formats").FORMATS[key_format]
    state, other = nodes("domaingallery_core.files.formats.comfyui").Comfyui().from_file(lora)

    file = form(lora.names).to_file(state)

    message = r"layers of this model, got \d+ names that it does not have, such as .*Use a LoRA made for"
    assert not other
    refused(nodes, model, errors.FileError, message, erased=file)


@pytest.mark.parametrize("kind", ["STABLE_CASCADE", "EDM", "IMG_TO_IMG"])
def test_a_family_that_predicts_what_is_not_known(nodes, errors, kind):
    message = rf"epsilon, v or a flow, got one of the type {kind}\. Train with another model"

    refused(nodes, tiny_model(kind), errors.InputError, message)


def test_a_family_that_is_not_known_and_has_no_attention_that_is(nodes, errors, model, monkeypatch):
    family = nodes("nodes.host.families").FAMILIES["stable diffusion"]
    monkeypatch.setattr(type(family), "targets", {"attention": ("*.mixer.*",)})

    message = r"linear layers of UNetModel, got none for 'attention'\. Use one of attention, or patterns"
    refused(nodes, model, errors.AdapterError, message)


def test_a_family_of_which_nothing_is_known_trains_without_what_it_lacks(nodes, model, monkeypatch, caplog):
    """Without features the similarity term is off, and the node says so."""
    families = nodes("nodes.host.families")
    for name, family in families.FAMILIES.items():
        if name != "plain":
            monkeypatch.setattr(type(family), "recognises", lambda self, base: False)
    before = weights_of(model)

    with caplog.at_level(logging.WARNING):
        result = train(nodes, model)

    assert families.family_of(model).name == "plain"
    assert "no features to compare" in result.ui["text"][0] and "similarity" not in result.ui["losses"][0]
    assert same(before, weights_of(model))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_base_in_float8_on_a_device_without_it(nodes, errors, monkeypatch, dtype):
    management = host_module("comfy.model_management")
    casts = management.supports_cast
    monkeypatch.setattr(
        management, "supports_cast", lambda device, wanted: wanted != dtype and casts(device, wanted)
    )
    name = str(dtype).removeprefix("torch.")

    message = rf"weights cpu can hold, got some in {name}\. Load it in float16 or bfloat16: weight_dtype of"
    refused(nodes, model_in(dtype), errors.InputError, message)


def test_a_base_in_float64_is_not_taken_for_one(nodes):
    """Of which the host says that it casts it nowhere."""
    nodes("nodes.host.network.held").check_held(tiny_model(dtype=torch.float64))


def test_a_text_encoder_of_another_family(nodes, errors, model):
    wide = [[torch.zeros(1, 6, 24), {}]]

    message = r"text encoder of this model \(16 wide\), got 24\. Connect the CLIP that belongs to the model"
    refused(nodes, model, errors.InputError, message, prompts=tiny_prompts(nodes, target=wide, source=wide))
    refused(
        nodes, tiny_model(pooled=5), errors.InputError, "prompts with a pooled embedding, as this model reads"
    )


def test_a_checkpoint_without_a_text_encoder(nodes, errors):
    node = nodes("nodes.data.prompts").DomainGalleryPrompts

    with pytest.raises(errors.InputError, match=r"a text encoder, got nothing\. If it is from a checkp"):
        node.execute(clip=None, identifier="sks", category="face")


def test_a_model_of_films_that_predicts_as_images_are_not(nodes, errors):
    """Stable Video Diffusion, say."""
    message = r"got one of the type V_PREDICTION_EDM\. Train with another model"

    refused(nodes, tiny_model("V_PREDICTION_EDM"), errors.InputError, message)


def test_a_model_of_sounds_is_refused_where_it_trains_and_where_it_draws(nodes, errors):
    form = type("Sounds", (host_module("comfy.latent_formats").SD15,), {"latent_dimensions": 1})
    model = tiny_model(latent_format=form)
    draw = nodes("nodes.data.source_images").empty_latents

    message = r"a model that draws images, got a BaseModel, whose latents have 1 dimension\(s\)\. Connect"
    refused(nodes, model, errors.InputError, message)
    with pytest.raises(errors.InputError, match=message):
        draw(model, 2, 64, 64)


def test_prompts_of_several_conditionings(nodes, errors, model):
    both = conditioning(0) + conditioning(1)

    refused(
        nodes, model, errors.InputError, "of a single conditioning, got 2 combined",
        prompts=tiny_prompts(nodes, target=both),
    )  # fmt: skip
