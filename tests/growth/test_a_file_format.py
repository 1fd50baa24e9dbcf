"""A file format is one class: here, one whose names are written backwards."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from toys import filled, inject, load_lora, network

from domaingallery_core.errors import FileError
from domaingallery_core.files.formats import FORMATS, Format
from domaingallery_core.files.lora import save_lora


class Mirrored(Format):
    """Names from the end to the beginning."""

    name, prefix, help = "mirrored", "mirrored ", "names from the end to the beginning"

    def to_file(self, tensors):
        return {self.prefix + name[::-1]: tensor for name, tensor in tensors.items()}

    def from_file(self, tensors):
        return {name.removeprefix(self.prefix)[::-1]: tensor for name, tensor in tensors.items()}, []


del FORMATS["mirrored"]  # a test adds it


@pytest.fixture(autouse=True)
def added():
    FORMATS["mirrored"] = Mirrored
    yield
    del FORMATS["mirrored"]


def test_a_lora_is_written_and_read_in_it(tmp_path):
    with filled(inject(network())) as adapter:
        state = adapter.state_dict()

    path = save_lora(tmp_path / "a.safetensors", state, {"who": "me"}, key_format="mirrored")
    found, metadata = load_lora(path)

    assert "mirrored thgiew.A_arol.q_ot.1ntta" in load_file(path)
    assert metadata == {"who": "me"} and found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_format_that_is_not_known_is_named_with_those_that_are(tmp_path):
    with pytest.raises(FileError, match=r"comfyui, diffusers, kohya, mirrored, got 'onnx'"):
        save_lora(tmp_path / "a.safetensors", {"a.alpha": torch.ones(1)}, key_format="onnx")
