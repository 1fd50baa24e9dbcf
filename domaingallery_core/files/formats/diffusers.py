"""Names of diffusers, as peft has them: "unet.<layer>.lora_A.weight", "transformer.<layer>.lora_B.weight".

Without an alpha, loaders of diffusers take B A as it is (`get_peft_kwargs` there: alpha = rank), and so does
ComfyUI; one in the file is read for some families and an error for others, and one in the metadata is read by
diffusers alone. So the scale alpha / rank is multiplied into B.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import FileError, shown
from ...trainables.kinds import describe, number
from ...trainables.kinds.dora import MAGNITUDE, SCALE, Dora
from ...trainables.kinds.lora import A, B, Lora
from ..layers import Parts, Place, cut
from .base import Format, layers_of

#: What diffusers calls the parts that it has.
PARTS = {A: "lora_A.weight", B: "lora_B.weight", MAGNITUDE: "lora_magnitude_vector"}


class Diffusers(Format):
    """Names of diffusers. A layer that is several there is cut: the same A for each, and its rows of B."""

    name, prefix = "diffusers", ("unet.", "transformer.", "base_model.model.")
    help = "names of diffusers and peft; of a UNet, ComfyUI itself does not read them"
    as_trained = True
    kinds = (Lora.name, Dora.name)

    def to_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if any(name.endswith((".diff", ".diff_b")) for name in tensors):
            raise FileError(
                "Expected a LoRA or a DoRA for the diffusers format, got differences of whole weights. "
                "Save in the kohya or the comfyui format."
            )
        self.check_kind(describe(tensors)[0])
        found: dict[str, Tensor] = {}
        for module, parts in layers_of(tensors).items():
            layers, parts = self._layers(module), self._unscaled(parts)
            for layer, place in layers.items():
                piece = cut(parts, place.rows)
                found |= {f"{layer}.{PARTS[part]}": tensor for part, tensor in piece.items()}
        return found

    def _unscaled(self, parts: Parts) -> Parts:
        """Return the parts of a layer with its scale in B, and without an alpha."""
        given = {part: tensor for part, tensor in parts.items() if part != "alpha"}
        if SCALE in given:
            raise FileError(
                "Expected the magnitudes of a DoRA as they were trained, got those that ComfyUI's loaders "
                "read. Connect the lora output of a training node, or save in the kohya format."
            )
        if "alpha" in parts and (scale := number(parts["alpha"]) / len(given[A])) != 1:
            given[B] = given[B] * scale
        return given

    def _layers(self, module: str) -> dict[str, Place]:
        if self.names is None or module not in self.names.diffusers:
            raise FileError(
                f"Expected a diffusers name for every layer, got none for {shown(module)}. "
                "Connect the lora output of a training node, or save in the kohya or the comfyui format."
            )
        return {layer: self.names.places[layer] for layer in self.names.diffusers[module]}
