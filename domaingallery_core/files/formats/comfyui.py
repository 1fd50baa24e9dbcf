"""The host's own names: "diffusion_model.<module>.<part>", as its LORA_MODEL has them, too."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import FileError, shown
from .base import Format


class Comfyui(Format):
    """Names of ComfyUI."""

    name, prefix = "comfyui", "diffusion_model."
    help = "the names of this program"

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.prefix + name: tensor for name, tensor in tensors.items()}

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if other := [name for name in tensors if not name.startswith(self.prefix)]:
            raise FileError(
                f"Expected LoRA names that begin with {self.prefix!r}, got {shown(other[0])}. "
                "Use a LoRA of the diffusion model alone, saved in the comfyui format."
            )
        return {name.removeprefix(self.prefix): tensor for name, tensor in tensors.items()}
