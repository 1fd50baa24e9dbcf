"""Every format says the same LoRA: to the host's loaders, and to a training that begins with it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.files.test_saving import save, trained
from tests.nodes.tiny import host_module, same, tiny_model
from tests.nodes.tiny_transformers import tiny_flux, tiny_sd3
from tests.nodes.training import train

MODELS = {"unet": tiny_model, "flux": tiny_flux, "sd3": tiny_sd3}
FORMATS = ("comfyui", "kohya", "diffusers")
KINDS = ("lora", "dora", "loha", "lokr")
READ_BACK = [(key_format, kind) for key_format in ("comfyui", "kohya") for kind in KINDS]
READ_BACK += [("diffusers", kind) for kind in ("lora", "dora")]


@pytest.fixture(params=MODELS)
def any_model(request, comfy):
    return MODELS[request.param]()


def lora_of(nodes, model, **config):
    return trained(nodes, model, **{"rank": 2, "alpha": 3.0, "targets": "linear", **config})


def weights_with(model, state):
    """Return every weight that a LoRA changes, as the stock loader changes it."""
    with torch.inference_mode():
        loaded, _ = host_module("comfy.sd").load_lora_for_models(model, None, state, 1.0, 0)
        return {key: loaded.patch_weight_to_device(key, return_weight=True) for key in loaded.patches}


@pytest.mark.parametrize(
    ("make", "key_format"),
    [(make, each) for make in MODELS for each in FORMATS if (make, each) != ("unet", "diffusers")],
)
def test_the_host_patches_the_same_weights_whatever_the_names(comfy, nodes, output, caplog, make, key_format):
    """But those of diffusers for a UNet, which its loaders do not know."""
    model = MODELS[make]()
    lora = lora_of(nodes, model)

    saved = save(nodes, lora, key_format=key_format)
    found, expected = weights_with(model, load_file(saved[0])), weights_with(model, lora)

    layers = len(lora) // 3
    assert "lora key not loaded" not in caplog.text
    assert found.keys() == expected.keys() and len(found) == layers
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, model.model.state_dict()[key])
    assert f"{key_format} names, {layers} of {layers} layers found in the model" in saved.ui["text"][0]


def test_a_file_that_the_host_does_not_read_says_so_on_the_node(nodes, model, output, said):
    text = save(nodes, lora_of(nodes, model, targets="attention"), key_format="diffusers").ui["text"][0]

    assert "with diffusers names, 0 of 56 layers found in the model" in text
    assert "ComfyUI's own loaders do not know 112 of the 112 names of this file" in text
    assert "save in the kohya format" in text and said[-1] == text


@pytest.mark.parametrize("other", ["loha", "lokr"])
def test_a_kind_that_a_format_cannot_hold_is_refused_with_what_to_choose(nodes, errors, model, output, other):
    with pytest.raises(errors.FileError, match=r"LoRA or a DoRA for the diffusers format, got a Lo.*kohya"):
        save(nodes, lora_of(nodes, model, kind=other), key_format="diffusers")

    assert not list(output.rglob("*.*"))


@pytest.mark.parametrize(("key_format", "kind"), READ_BACK)
def test_what_is_read_back_is_the_same_adapter(nodes, any_model, output, key_format, kind):
    """Of every format and kind it holds, an adapter that begins with a file is that which was saved."""
    lora = lora_of(nodes, any_model, kind=kind)
    path = save(nodes, lora, key_format=key_format)[0]
    files, adapters = nodes("domaingallery_core.files.lora"), nodes("domaingallery_core.trainables.adapters")
    settings = nodes("domaingallery_core.trainables.adapter_settings").AdapterSettings
    config = settings(rank=2, alpha=3.0, targets="linear", kind=kind)

    found, unknown = files.core_names(load_file(path), lora.names)
    network = any_model.model.diffusion_model
    with (
        nodes("nodes.host.model").training(any_model),
        adapters.Adapter.inject(network, config, torch.Generator()) as adapter,
    ):
        adapter.begin_with(found)
        state = adapter.state_dict()

    assert unknown == [] and state.keys() == lora.state.keys()
    for name, tensor in lora.state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_stage_that_goes_on_with_a_file_ends_as_with_the_lora_itself(nodes, model, output):
    """A power of two as the scale is multiplied in and out again without rounding."""
    options = nodes("nodes.sockets").TrainingOptions(rank=2, alpha=4.0)
    first = train(nodes, model, options=options)[0]
    expected = train(nodes, model, options=options, erased=first)[0]

    for key_format in ("comfyui", "kohya", "diffusers"):
        file = load_file(save(nodes, first, key_format=key_format)[0])
        assert same(train(nodes, model, options=options, erased=file)[0], expected)


def test_a_file_is_read_by_its_node(nodes, errors, model, lora, output, monkeypatch):
    path = save(nodes, lora)[0]
    node, paths = nodes("nodes.files.loading").DomainGalleryLoadLora, host_module("folder_paths")
    monkeypatch.setattr(paths, "get_full_path", lambda folder, name: path if name == "it" else None)

    assert same(node.execute(lora_name="it")[0], load_file(path))
    before = node.fingerprint_inputs("it")
    with open(path, "ab") as file:
        file.write(b"x")
    assert node.fingerprint_inputs("it") != before
    with pytest.raises(errors.FileError, match="Expected a LoRA in safetensors format"):
        node.execute(lora_name="it")
    with pytest.raises(errors.FileError, match="file 'gone' in the folders of LoRAs, got none"):
        node.execute(lora_name="gone")


@pytest.fixture
def lora(nodes, model):
    return trained(nodes, model)


def test_what_a_training_cannot_begin_with_is_left_out_and_said(nodes, model, output, said):
    """Text encoders, other layers, and layers that begin anew."""
    lora = lora_of(nodes, model, targets="attention+feedforward", rank=4, alpha=4.0)
    file = load_file(save(nodes, lora, key_format="kohya")[0])
    missing = [name for name in file if "mid_block" in name and "attn1_to_q" in name]
    file = {name: tensor for name, tensor in file.items() if name not in missing}
    file["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.ones(())

    trained = train(nodes, model, erased=file)

    text = trained.ui["text"][0]
    layers = len({name.rpartition(".lora_")[0] for name in trained[0] if ".lora_" in name})
    forward = sum(".ff." in name for name in lora)
    assert layers == 56 and len(missing) == 3
    assert f"{forward + 1} names are of no layer that learns here and are left out, such as 'lora_te" in text
    assert "nothing for 1 layers that learn here, such as 'middle_block.1" in text


def test_a_file_for_other_layers_than_those_that_learn_is_refused(nodes, errors, model):
    lora = lora_of(nodes, model, targets="ff.net.2")

    with pytest.raises(
        errors.AdapterError, match=r"got one for others, such as '.*ff\.net\.2.*Set targets in"
    ):
        train(nodes, model, erased=lora)


def test_a_lower_rank_at_another_scale_adds_the_same_at_a_higher_one(nodes, model):
    """Rows that are added are fresh, and what they give is multiplied by 0."""
    first = trained(nodes, model, rank=2, alpha=1.0)
    adapters = nodes("domaingallery_core.trainables.adapters")
    config = nodes("domaingallery_core.trainables.adapter_settings").AdapterSettings(rank=4, alpha=8.0)
    generator = torch.Generator().manual_seed(1)

    with (
        nodes("nodes.host.model").training(model),
        adapters.Adapter.inject(model.model.diffusion_model, config, generator) as adapter,
    ):
        fresh = adapter.state_dict()
        adapter.begin_with(first.state)
        found = adapter.state_dict()

    for name in {name.rpartition(".lora_")[0] for name in found if ".lora_" in name}:
        a, b = (found[f"{name}.lora_{part}.weight"] for part in "AB")
        old_a, old_b = (first.state[f"{name}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(8 / 4 * b @ a, 1 / 2 * old_b @ old_a)
        assert torch.equal(a[2:], fresh[f"{name}.lora_A.weight"][2:]) and not b[:, 2:].any()


def test_names_of_every_program_lead_to_the_layers(nodes, any_model):
    """peft's own files, OneTrainer's, and old ones of diffusers with attention processors."""
    names = nodes("nodes.host.families").family_of(any_model).names(any_model.model)
    spelled = {
        "unet": {
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": ("attn1.to_q", ()),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out": ("attn1.to_out.0", ()),
            "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": ("attn1.to_q", ()),
        },
        "flux": {
            "lora_transformer_transformer_blocks_1_attn_to_k": ("img_attn.qkv", ((64, 64),)),
            "base_model.model.transformer_blocks.1.attn.to_k": ("img_attn.qkv", ((64, 64),)),
            "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", ((192, 256),)),
            "lora_unet_double_blocks_0_img_attn_qkv": ("double_blocks.0.img_attn.qkv", ()),
        },
        "sd3": {
            "lora_transformer_transformer_blocks_1_attn_add_v_proj": (
                "context_block.attn.qkv",
                ((256, 128),),
            ),
            "transformer.norm_out.linear": ("final_layer.adaLN_modulation.1", ((128, 128), (0, 128))),
        },
    }
    [family] = [name for name, make in MODELS.items() if type(make().model) is type(any_model.model)]

    for name, (module, rows) in spelled[family].items():
        assert names.places[name].module.endswith(module) and names.places[name].rows == rows


@pytest.mark.parametrize("program", ["OneTrainer", "ai-toolkit"])
def test_layers_that_others_train_apart_are_begun_with_as_the_host_loads_them(comfy, nodes, said, program):
    """Query, key and value have matrices of their own; the rank of the joined layer is the sum of theirs."""
    model, generator, file = tiny_flux(), torch.Generator().manual_seed(0), {}
    training, sockets = nodes("nodes.train.training"), nodes("nodes.sockets")
    for block, letter in ((block, letter) for block in range(2) for letter in "qkv"):
        name, a, b = f"transformer.transformer_blocks.{block}.attn.to_{letter}", "lora_A", "lora_B"
        if program == "OneTrainer":
            name, a, b = f"lora_{name.replace('.', '_')}", "lora_down", "lora_up"
            file[f"{name}.alpha"] = torch.tensor(1.0)
        file[f"{name}.{a}.weight"] = torch.randn(2, 64, generator=generator)
        file[f"{name}.{b}.weight"] = torch.randn(64, 2, generator=generator)
    expected = weights_with(model, file)
    options = sockets.TrainingOptions(rank=8, alpha=4.0, targets="*img_attn.qkv, single_blocks.*.linear2")

    start, options = training.starting_weights(model, file, options)
    adapters = nodes("domaingallery_core.trainables.adapters")
    network = model.model.diffusion_model
    with (
        nodes("nodes.host.model").training(model),
        adapters.Adapter.inject(network, options.adapter(), generator) as adapter,
    ):
        adapter.begin_with(start)
        tensors = nodes("domaingallery_core.files.formats.comfyui").Comfyui().to_file(adapter.state_dict())
    found = weights_with(model, tensors)

    assert {len(tensor) for name, tensor in start.items() if "lora_A" in name} == {6}
    assert len(expected) == 2 and len(found) == 4
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-5, atol=1e-5)
