"""Saved LoRAs load in the host by every key, and bad names or full disks leave nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gallery import PACK
from tests.nodes.tiny import conditioning, host_module, same, tiny_latents, tiny_model


def trained(nodes, model, see=None, **config):
    """Return a LORA_MODEL with random weights, as training makes it, after a look at the model with it on."""
    adapters, host, sockets = (
        nodes("domaingallery_core.trainables.adapters"),
        nodes("nodes.host.model"),
        nodes("nodes.sockets"),
    )
    generator = torch.Generator().manual_seed(0)
    with (
        host.training(model),
        adapters.Adapter.inject(
            model.model.diffusion_model,
            nodes("domaingallery_core.trainables.adapter_settings").AdapterSettings(**config),
            generator,
        ) as adapter,
    ):
        with torch.no_grad():
            for weight in adapter.parameters():
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
        if see is not None:
            see()
        trained_state = adapter.state_dict()
        state = adapter.exported(trained_state)
    tensors = nodes("domaingallery_core.files.formats.comfyui").Comfyui().to_file(state)
    return sockets.TrainedLora(
        tensors,
        metadata={"who": "test", "modelspec.trigger_phrase": "a sks face"},
        names=host.family_of(model).names(model.model),
        loads=nodes("nodes.host.families.names").key_map(model.model),
        state=trained_state,
    )


@pytest.fixture
def lora(nodes, model):
    return trained(nodes, model)


def save(nodes, lora, name="sketch", key_format="comfyui"):
    return nodes("nodes.files.saving").DomainGallerySaveLora.execute(lora, name, key_format)


@pytest.mark.parametrize("key_format", ["comfyui", "kohya"])
def test_every_key_of_a_file_loads_in_the_host(nodes, model, lora, output, key_format):
    """Both formats patch the same weights by the same values."""
    path = save(nodes, lora, key_format=key_format)[0]

    state, metadata = host_module("comfy.utils").load_torch_file(path, return_metadata=True)
    direct, _ = host_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0)
    loaded, _ = host_module("comfy.sd").load_lora_for_models(model, None, state, 1.0, 0)

    assert metadata["who"] == "test"
    assert loaded.patches.keys() == direct.patches.keys()
    assert len(loaded.patches) == len(state) // 3
    for key in loaded.patches:
        weights = [patcher.patch_weight_to_device(key, return_weight=True) for patcher in (loaded, direct)]
        assert torch.equal(*weights)
        assert not torch.equal(weights[0], model.model.state_dict()[key])


def x0_of(nodes, model):
    """Return x0 for random latents, as training sees the MODEL."""
    host = nodes("nodes.host.model")
    with host.training(model), torch.no_grad():
        denoiser, x = host.HostDenoiser(model), tiny_latents(2).clone()
        [condition] = denoiser.conditions([conditioning(0)], x)
        return denoiser(x, torch.tensor([0.4, 0.7]), condition)


@pytest.mark.parametrize("key_format", ["comfyui", "kohya"])
@pytest.mark.parametrize("targets", ["attention", "linear"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_a_loaded_file_does_what_the_adapter_did(nodes, model, output, caplog, kind, targets, key_format):
    """Of every kind, the stock loader matches every key, and the MODEL predicts what it did in training."""
    seen = []
    lora = trained(
        nodes, model, lambda: seen.append(x0_of(nodes, model)), rank=2, alpha=3.0, kind=kind, targets=targets
    )
    plain = x0_of(nodes, model)
    path = save(nodes, lora, key_format=key_format)[0]

    with torch.inference_mode():
        state = host_module("comfy.utils").load_torch_file(path)
        loaded, _ = host_module("comfy.sd").load_lora_for_models(model, None, state, 1.0, 0)

    assert "lora key not loaded" not in caplog.text
    assert len(loaded.patches) == len([name for name in state if name.endswith(".alpha")])
    assert not torch.allclose(plain, seen[0], atol=1e-2)
    torch.testing.assert_close(x0_of(nodes, loaded), seen[0], rtol=1e-4, atol=1e-4)


def test_kohya_names_of_a_small_unet_are_those_of_diffusers(nodes, model):
    names = nodes("nodes.host.families").family_of(model).kohya_names(model.model)

    assert (
        names["input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"]
        == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )
    assert len(set(names.values())) == len(names)


def test_a_weight_that_diffusers_does_not_know_keeps_its_own_kohya_name(nodes, model):
    """So do all of a model that is no UNet."""
    model.model.diffusion_model.refiner = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    assert (
        nodes("nodes.host.families").family_of(model).kohya_names(model.model)["refiner.0"]
        == "lora_unet_refiner_0"
    )


def test_kohya_names_of_a_pooled_unet_are_the_original_ones(comfy, nodes):
    model = tiny_model(pooled=5)
    names = nodes("nodes.host.families").family_of(model).kohya_names(model.model)

    assert (
        names["input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"]
        == "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0"
    )


def test_files_are_numbered_and_named_to_the_user(nodes, lora, output):
    first, second = save(nodes, lora, "faces/sketch"), save(nodes, lora, "faces/sketch")

    assert Path(first[0]) == output / "loras" / "faces" / "sketch_00001_.safetensors"
    assert Path(second[0]).name == "sketch_00002_.safetensors"
    assert first.ui["loras"] == [
        {"filename": "sketch_00001_.safetensors", "subfolder": "loras/faces", "type": "output"}
    ]
    assert first.ui["text"][0].splitlines() == [
        'trigger words: "a sks face"',
        "saved as loras/faces/sketch_00001_.safetensors",
        "with comfyui names, 56 of 56 layers found in the model",
    ]


def with_picture(lora, text):
    lora.metadata["modelspec.thumbnail"] = text
    return lora


def test_the_picture_of_a_lora_is_shown_on_the_node(nodes, lora, output):
    """It is the one in the file: the last preview of the training."""
    drawn = Image.new("RGB", (40, 20), (200, 100, 50))
    text = nodes("nodes.train.metadata").thumbnail({3: [drawn]})["modelspec.thumbnail"]

    [shown] = save(nodes, with_picture(lora, text)).ui["images"]

    assert shown["type"] == "temp"
    folder = host_module("folder_paths").get_temp_directory()
    with Image.open(Path(folder, shown["subfolder"], shown["filename"])) as image:
        assert image.size == (40, 20)
        assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() < 8  # it was a JPEG


@pytest.mark.parametrize(
    "text", ["data:image/jpeg;base64,AAAA", "data:image/jpeg;base64,?", "https://x/y.jpg"]
)
def test_a_picture_that_cannot_be_shown_loses_nothing(nodes, lora, output, text):
    saved = save(nodes, with_picture(lora, text))

    assert Path(saved[0]).is_file() and "images" not in saved.ui


@pytest.mark.parametrize(
    "name", ["", "  ", "..", "../x", "a/../../x", "a\\..\\x", "/etc/x", "C:\\x", "C:x", "\\\\server\\x", "a/"]
)
def test_names_that_climb_out_are_refused(nodes, errors, lora, output, name):
    with pytest.raises(errors.InputError, match="name inside the folder output/loras, got"):
        save(nodes, lora, name)

    assert not list(output.rglob("*.*"))


def test_a_lora_of_the_host_can_be_saved(nodes, lora, output):
    """A plain LORA_MODEL has no metadata, and is kept as it is."""
    plain = dict(lora)

    saved = save(nodes, plain)
    path = saved[0]

    assert (
        saved.ui["text"] == ["saved as loras/sketch_00001_.safetensors\nwith comfyui names"]
        and "images" not in saved.ui
    )
    assert same(host_module("comfy.utils").load_torch_file(path), plain)


def test_a_failed_write_leaves_no_file(nodes, errors, lora, output, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nodes("domaingallery_core.files.writing").os, "fsync", full)
    with pytest.raises(errors.FileError, match="No space left on device"):
        save(nodes, lora)

    assert not list(output.rglob("*.*"))


def test_a_number_that_another_process_took_meanwhile_is_left_to_it(nodes, lora, output, monkeypatch):
    first = Path(save(nodes, lora)[0])
    before = first.read_bytes()
    saving = nodes("nodes.files.saving")
    place = saving.place_of("sketch")
    monkeypatch.setattr(saving, "place_of", lambda name, kind: (place[0], place[1], 1, place[3]))

    second = Path(save(nodes, {name: tensor + 1 for name, tensor in lora.items()})[0])

    assert second.name == "sketch_00002_.safetensors" and first.read_bytes() == before


def test_whatever_is_in_the_place_of_a_file_or_folder_is_named_or_passed_over(
    nodes, errors, lora, output, tmp_path
):
    (output / "loras" / "sketch_00001_.safetensors").mkdir(parents=True)
    assert Path(save(nodes, lora)[0]).name == "sketch_00002_.safetensors"
    (output / "loras" / "file").write_bytes(b"")
    with pytest.raises(errors.FileError, match="Expected to write"):
        save(nodes, lora, "file/sketch")
    with pytest.raises(errors.FileError, match="Expected to write"):
        save(nodes, lora, "x" * 300)
    (output / "loras" / "out").symlink_to("/")
    with pytest.raises(errors.InputError, match="which a link leads out of"):
        save(nodes, lora, "out/sketch")


def test_a_folder_of_loras_that_is_a_link_is_taken(nodes, lora, output, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (output / "loras").symlink_to(elsewhere)

    save(nodes, lora)

    assert [path.name for path in elsewhere.iterdir()] == ["sketch_00001_.safetensors"]


@pytest.mark.parametrize(
    ("name", "sign"), [("a\0b", "U+0000"), ("a\ud800", "U+D800"), ("x" * 10_001, "at most 10000")]
)
def test_names_that_no_disk_takes_are_named(nodes, errors, lora, output, name, sign):
    node = nodes("nodes.files.saving").DomainGallerySaveLora

    with pytest.raises(errors.InputError, match=re.escape(sign)):
        node.execute(lora=lora, name=name, key_format="comfyui")


def test_weights_that_are_not_finite_are_not_saved(nodes, errors, lora, output):
    next(iter(lora.values())).fill_(float("nan"))

    with pytest.raises(errors.InputError, match="finite"):
        save(nodes, lora)

    assert not list(output.rglob("*.*"))


@pytest.fixture(scope="module")
def demo_loras(comfy, nodes, tmp_path_factory):
    """Return the demo model and files of the three LoRAs that the demo makes, trained for one step."""
    folder = tmp_path_factory.mktemp("demo")
    sockets, training = nodes("nodes.sockets"), nodes("nodes.train.training")
    weights = dict
    examples = nodes("domaingallery_core.data.examples").Examples
    with torch.inference_mode():
        model, clip, _ = nodes("nodes.demo.sketchbook").load_sketchbook()
        words, subject_words = (
            nodes("nodes.data.prompts").DomainGalleryPrompts.execute(clip, identifier, "face")[0]
            for identifier in ("sks", "olis")
        )
        noise = torch.randn(8, 24, 16, 16, generator=torch.Generator().manual_seed(0))
        dataset = sockets.LatentDataset(
            (sockets.LatentPart(source=examples(noise[:5]), target=examples(noise[5:])),)
        )
        options = sockets.TrainingOptions(batch_size=3, denoise_steps=1)
        plain = sockets.TrainingOptions(batch_size=1, weights=weights(disentanglement=0.0, similarity=0.0))
        numbers = {"steps": 1, "learning_rate": 1e-2, "seed": 0}
        erased = training.DomainGalleryErase.execute(model, words, dataset, **numbers, options=options)[0]
        domain = training.DomainGalleryTrain.execute(
            model, words, dataset, **numbers, erased=erased, options=options
        )[0]
        subject = training.DomainGalleryTrain.execute(
            model, subject_words, dataset, **numbers, options=plain
        )[0]
    files = {}
    for name, lora in (("erased", erased), ("domain", domain), ("subject", subject)):
        state, _ = nodes("domaingallery_core.files.formats.comfyui").Comfyui().from_file(lora)
        for key_format in ("comfyui", "kohya"):
            files[name, key_format] = nodes("domaingallery_core.files.lora").save_lora(
                folder / f"{name}_{key_format}.safetensors",
                state,
                lora.metadata,
                key_format=key_format,
                names=lora.names,
            )
    shipped = PACK / "domaingallery_core/sketchbook/loras/sketchbook_cyanotype.safetensors"
    return model, {**files, ("shipped", "comfyui"): shipped}


@pytest.mark.parametrize(
    ("name", "key_format"),
    [
        *((name, f) for name in ("erased", "domain", "subject") for f in ("comfyui", "kohya")),
        ("shipped", "comfyui"),
    ],
)
def test_the_demo_loras_load_in_the_stock_node_by_every_key(
    demo_loras, monkeypatch, caplog, name, key_format
):
    """As many weights are patched as layers were trained, and what is patched differs."""
    model, files = demo_loras
    file = str(files[name, key_format])
    monkeypatch.setattr(host_module("folder_paths"), "get_full_path_or_raise", lambda *_: file)
    state = host_module("comfy.utils").load_torch_file(file)

    with torch.inference_mode():
        [loaded] = host_module("nodes").LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)

    assert "lora key not loaded" not in caplog.text
    modules = [key.removesuffix(".alpha") for key in state if key.endswith(".alpha")]
    attention = [
        key
        for key in model.model.state_dict()
        if ".attn" in key and key.endswith("weight") and ".norm" not in key
    ]
    assert len(loaded.patches) == len(modules) == len(attention)
    key = next(iter(loaded.patches))
    assert not torch.equal(
        loaded.patch_weight_to_device(key, return_weight=True), model.model.state_dict()[key]
    )
