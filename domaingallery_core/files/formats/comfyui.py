"""The host's own names: "diffusion_model.<module>.<part>", as its LORA_MODEL has them, too."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..layers import Place
from .base import Format

#: How the names of a text encoder begin, here and in the core.
TEXT = "text_encoders."


class Comfyui(Format):
    """Names of ComfyUI, which need no model to be read."""

    name, prefix = "comfyui", "diffusion_model."
    help = "the names of this program"

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name if name.startswith(TEXT) else f"{self.prefix}{name}": tensor
            for name, tensor in tensors.items()
        }

    def place(self, layer: str) -> Place | None:
        if self.names is None and layer.startswith(self.prefix):
            return Place(layer.removeprefix("diffusion_model."))
        if self.names is None and layer.startswith(TEXT):
            return Place(layer)
        return super().place(layer)
