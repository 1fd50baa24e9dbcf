"""Load LoRA for Training: from a file that any program wrote to a LORA_MODEL, to begin a training with."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ...domaingallery_core.errors import FileError, shown
from ...domaingallery_core.files.writing import read_tensors
from ..node import Node
from ..sockets import CATEGORY


class DomainGalleryLoadLora(Node):
    """Read a LoRA from a file, as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryLoadLora",
            display_name="Load LoRA for Training",
            category=CATEGORY,
            description="Reads a LoRA file for a training to begin with: of this pack, or under the names of "
            "ComfyUI, kohya, diffusers, peft, OneTrainer or ai-toolkit.",
            search_aliases=["import lora", "resume lora", "continue lora", "lora model", "safetensors"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A safetensors file in a folder of LoRAs, or in output/loras.",
                )
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="For erased of a training, or for the host's Load LoRA Model.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> tuple[int, int]:
        """Return what changes when the file does."""
        facts = path_of(lora_name).stat()
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        return io.NodeOutput(read_tensors(path_of(lora_name))[0])


def path_of(name: str) -> Path:
    """Return the path of a file in the folders of LoRAs.

    Raises:
        FileError: it is there no more.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise FileError(f"Expected a file {shown(name)} in the folders of LoRAs, got none. Choose another.")
    return Path(path)
