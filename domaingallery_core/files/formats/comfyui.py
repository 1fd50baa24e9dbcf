"""The host's own names: "diffusion_model.<module>.<part>", as its LORA_MODEL has them, too."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import FileError, shown
from .base import Format

#: How the names of a text encoder begin, here and in the core.
TEXT = "text_encoders."


class Comfyui(Format):
    """Names of ComfyUI."""

    name, prefix = "comfyui", "diffusion_model."
    help = "the names of this program"

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name if name.startswith(TEXT) else self.prefix + name: tensor for name, tensor in tensors.items()
        }

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if other := [name for name in tensors if not name.startswith((self.prefix, TEXT))]:
            raise FileError(
                f"Expected LoRA names that begin with {self.prefix!r}, got {shown(other[0])}. "
                "Use a LoRA of the diffusion model, saved in the comfyui format."
            )
        return {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}
