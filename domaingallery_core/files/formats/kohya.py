"""kohya's names: "lora_unet_<module with _>.lora_down.weight", which most programs read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import FileError, shown
from .base import Format, file_parts, split


class Kohya(Format):
    """Names of kohya's scripts. From a file they lead back only where the modules of the model are known."""

    name, prefix = "kohya", "lora_unet_"
    help = "names that most other programs read"

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts, found = file_parts(), {}
        for name, tensor in tensors.items():
            module, part = split(name)
            found[f"{self._name(module)}.{parts[part]}"] = tensor
        return found

    def _name(self, module: str) -> str:
        if self.modules is None:
            return self.prefix + module.replace(".", "_")
        if module not in self.modules:
            raise FileError(
                f"Expected a kohya name for every layer, got none for {shown(module)}. "
                "Save in the comfyui format."
            )
        return self.modules[module]

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        modules = {name: module for module, name in (self.modules or {}).items()}
        parts = {kohya: part for part, kohya in file_parts().items()}
        found = {}
        for name, tensor in tensors.items():
            file_name, part = split(name)
            if file_name not in modules:
                raise FileError(
                    f"Expected kohya names of this model's layers, got {shown(file_name)}. "
                    "Use a LoRA made for this model."
                )
            found[f"{modules[file_name]}.{parts.get(part, part)}"] = tensor
        return found
