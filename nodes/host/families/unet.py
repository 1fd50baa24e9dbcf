"""The UNets of Stable Diffusion: SD1.x and SD2.x, and those that read a size besides, as SDXL does.

Their features are those of the paper; prompts of another width are told by the host's own configuration.
"""

from __future__ import annotations

from typing import Any, NoReturn

from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_base import SDXL, BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .base import Drawing, Evaluate, Family, Patches

#: The versions of Stable Diffusion by how wide their text is.
VERSIONS = {768: "1", 1024: "2"}


class UNet(Family):
    """A UNet of the host; kohya's names are those of the original code."""

    name, compares = "unet", True
    drawing = Drawing(size=1024, cfg=7.0, origin="SDXL's own size, and the guidance of its makers' examples")

    def recognises(self, base: BaseModel) -> bool:
        return isinstance(base.diffusion_model, UNetModel)

    def features(self, model: ModelPatcher, patches: Patches, evaluate: Evaluate) -> list[Tensor]:
        """Return the skip tensors of the down path (paper 4.2)."""
        last = len(model.model.diffusion_model.input_blocks) - 1
        skips: list[Tensor] = []

        def collect(hidden: Tensor, options: dict[str, Any]) -> Tensor:
            skips.append(hidden)
            return hidden if options["block"] != ("input", last) else _stop()

        try:
            evaluate({**patches, "input_block_patch": [*patches.get("input_block_patch", []), collect]})
        except _DownPathDone:
            pass
        return skips

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        return [m for m in network.modules() if isinstance(m, (ResBlock, BasicTransformerBlock))]


class StableDiffusion(UNet):
    """SD1.x and SD2.x, whose files in kohya's format have the names of diffusers."""

    name = "stable diffusion"
    drawing = Drawing(origin="the paper, with a sampler that needs half its steps")

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and base.adm_channels == 0

    def kohya_names(self, base: BaseModel) -> dict[str, str]:
        return self._spelled(base, original=False)

    def architecture(self, base: BaseModel) -> dict[str, str]:
        version = VERSIONS.get(base.model_config.unet_config.get("context_dim"))
        if version is None:
            return {}
        v = base.model_type == ModelType.V_PREDICTION
        size = {"1": "", "2": "-768-v" if v else "-512"}[version]
        return {
            "modelspec.architecture": f"stable-diffusion-v{version}{size}/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": f"sd_v{version}{'_v' if v else ''}",
            "ss_v2": str(version == "2"),
        }


class StableDiffusionXL(UNet):
    """SDXL, whose files in kohya's format have the names of the original code."""

    name = "stable diffusion xl"

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and isinstance(base, SDXL)

    def architecture(self, base: BaseModel) -> dict[str, str]:
        return {
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
        }


class StableDiffusionV(StableDiffusion):
    """SD2.x for 768 pixels, which predicts v."""

    name = "stable diffusion v"
    drawing = Drawing(size=768, origin="the size that it was made for; else as Stable Diffusion")

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and base.model_type == ModelType.V_PREDICTION


class _DownPathDone(Exception):
    """Raised after the last input block, where the features are complete."""


def _stop() -> NoReturn:
    raise _DownPathDone
