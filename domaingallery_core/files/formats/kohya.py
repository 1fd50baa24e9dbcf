"""kohya's names: "lora_unet_<module with _>.lora_down.weight", which most programs read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import FileError, shown
from .base import Format, file_parts, layers_of


class Kohya(Format):
    """Names of kohya's scripts. From a file they lead back only where the layers of the model are known."""

    name, prefix = "kohya", "lora_unet_"
    help = "names that ComfyUI, programs like A1111 and, for Stable Diffusion and Flux, diffusers read"

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        spelled, found = file_parts(), {}
        for module, parts in layers_of(tensors).items():
            layer = self._name(module)
            found |= {f"{layer}.{spelled[part]}": tensor for part, tensor in parts.items()}
        return found

    def _name(self, module: str) -> str:
        if self.names is None:
            return f"{self.prefix}{module.replace('.', '_')}"
        if module not in self.names.kohya:
            raise FileError(
                f"Expected a kohya name for every layer, got none for {shown(module)}. "
                "Save in the comfyui format."
            )
        return self.names.kohya[module]
