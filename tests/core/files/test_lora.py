"""LoRA files."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from toys import load_lora, names_of, random

from domaingallery_core.errors import FileError
from domaingallery_core.files import writing as files
from domaingallery_core.files.formats import FORMATS
from domaingallery_core.files.formats.comfyui import Comfyui
from domaingallery_core.files.formats.kohya import Kohya
from domaingallery_core.files.lora import core_names, save_lora

NAME = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
MODULE = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
NAMES = names_of(**{MODULE: NAME})


def tensors():
    return {
        f"{MODULE}.lora_A.weight": random(4, 8, seed=1),
        f"{MODULE}.lora_B.weight": random(8, 4, seed=2),
        f"{MODULE}.alpha": torch.tensor(4.0),
    }


@pytest.mark.parametrize("key_format", ["comfyui", "kohya"])
def test_saving_and_loading_is_a_round_trip(tmp_path, key_format):
    path = tmp_path / "new folder" / "a.safetensors"

    save_lora(path, tensors(), {"prompt": "a sks face"}, key_format=key_format)
    found, metadata = load_lora(path, NAMES)

    assert metadata == {"prompt": "a sks face"}
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[k], v) for k, v in tensors().items())
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_comfyui_names(tmp_path):
    keys = load_file(save_lora(tmp_path / "a.safetensors", tensors(), key_format="comfyui")).keys()

    assert keys == {
        f"diffusion_model.{MODULE}.{part}" for part in ("lora_A.weight", "lora_B.weight", "alpha")
    }


def test_kohya_names_come_from_the_module_or_a_map(tmp_path):
    plain = load_file(save_lora(tmp_path / "a.safetensors", tensors(), key_format="kohya"))
    names = names_of(**{MODULE: "lora_unet_down_q"})
    mapped = load_file(save_lora(tmp_path / "b.safetensors", tensors(), key_format="kohya", names=names))

    assert plain.keys() == {f"{NAME}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert mapped.keys() == {
        f"lora_unet_down_q.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }


def test_the_host_names_go_both_ways():
    text = {"text.lora_A.weight": torch.zeros(1)}

    found, unknown = Comfyui().from_file(Comfyui().to_file(tensors()) | text)

    assert found.keys() == tensors().keys() and unknown == ["text.lora_A.weight"]


def test_equal_loras_are_equal_files(tmp_path):
    metadata = {f"key {i}": f'"{i}" \n é' for i in range(9)}

    files = [save_lora(tmp_path / f"{i}.safetensors", tensors(), metadata).read_bytes() for i in range(4)]

    assert len(set(files)) == 1
    assert load_lora(tmp_path / "0.safetensors", NAMES)[1] == metadata


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save_lora(tmp_path / "a.safetensors", tensors())
    old = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        save_lora(path, {k: v + 1 for k, v in tensors().items()})

    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_file_that_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    def other(descriptor):
        os.pwrite(descriptor, b"x", 100)

    monkeypatch.setattr(files.os, "fsync", other)
    with pytest.raises(FileError, match="reads back as something else"):
        save_lora(tmp_path / "a.safetensors", tensors())

    assert os.listdir(tmp_path) == []


def test_tensors_that_share_their_storage_are_saved(tmp_path):
    whole = torch.arange(8.0)
    shared = {f"{MODULE}.lora_A.weight": whole.view(2, 4), f"{MODULE}.lora_B.weight": whole[:4].expand(3, 4)}

    found, _ = load_lora(save_lora(tmp_path / "a.safetensors", shared), NAMES)

    assert all(torch.equal(found[name], tensor) for name, tensor in shared.items())


@pytest.mark.parametrize(
    ("broken", "named"), [({}, "at least one"), ({f"{MODULE}.alpha": torch.tensor(torch.nan)}, "finite")]
)
def test_empty_and_broken_weights_are_not_written(tmp_path, broken, named):
    with pytest.raises(FileError, match=named):
        save_lora(tmp_path / "a.safetensors", broken)

    assert os.listdir(tmp_path) == []


def test_unreadable_files_are_refused_by_name(tmp_path):
    (tmp_path / "text.safetensors").write_text("not a LoRA")
    for name in ("text", "absent"):
        with pytest.raises(FileError, match=name):
            load_lora(tmp_path / f"{name}.safetensors")


def test_kohya_names_of_another_model_are_refused(tmp_path):
    path = save_lora(tmp_path / "a.safetensors", tensors(), key_format="kohya")

    with pytest.raises(FileError, match=r"layers of this model, got 3 names .* such as 'lora_unet_input"):
        load_lora(path, names_of(**{"middle_block.0": "lora_unet_middle_block_0"}))


def test_a_lora_that_is_there_is_replaced_unless_it_is_said_otherwise(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(path, tensors())
    doubled = {name: 2 * tensor for name, tensor in tensors().items()}

    with pytest.raises(FileExistsError):
        save_lora(path, doubled, replace=False)
    assert all(torch.equal(load_lora(path, NAMES)[0][name], t) for name, t in tensors().items())
    save_lora(path, doubled)
    assert all(torch.equal(load_lora(path, NAMES)[0][name], t) for name, t in doubled.items())


def test_a_layer_without_a_kohya_name_is_refused_by_name(tmp_path):
    message = rf"Expected a kohya name for every layer, got none for '{MODULE}'\. Save in the comfyui format"
    with pytest.raises(FileError, match=message):
        save_lora(tmp_path / "a", tensors(), key_format="kohya", names=names_of(**{"middle_block.0": NAME}))

    assert os.listdir(tmp_path) == []


def test_parts_of_no_kind_are_refused_with_those_that_are_known():
    message = r"Expected names that end in one of alpha, .*lora_A\.weight.*, got '{}'\. Use a .*LoRA.* of the"
    with pytest.raises(FileError, match=message.format(rf"{MODULE}\.bias")):
        Kohya().to_file({f"{MODULE}.bias": torch.zeros(1)})

    found = Kohya(NAMES).from_file({f"{NAME}.bias": torch.zeros(1)})

    assert found == ({}, [f"{NAME}.bias"])


def test_each_format_says_whose_names_it_has():
    assert {name: form.help for name, form in FORMATS.items()} == {
        "comfyui": "the names of this program",
        "diffusers": "names of diffusers and peft; of a UNet, ComfyUI itself does not read them",
        "kohya": "names that ComfyUI, programs like A1111 and, for Stable Diffusion and Flux, diffusers read",
    }


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(FileError, match="'onnx'"):
        save_lora(tmp_path / "a.safetensors", tensors(), key_format="onnx")


def test_an_empty_lora_and_one_of_a_text_encoder_alone_are_refused():
    with pytest.raises(FileError, match=r"layers of this model, got 0 names that it does not have\. Use"):
        core_names({}, NAMES)
    with pytest.raises(FileError, match=r"got 1 names that it does not have, such as 'lora_te_x\.alpha'"):
        core_names({"lora_te_x.alpha": torch.ones(())}, NAMES)
