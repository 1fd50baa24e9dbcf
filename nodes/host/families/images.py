"""Transformers that draw images: a row for each family, with where its numbers come from."""

from __future__ import annotations

from comfy.model_base import BaseModel

from .base import Drawing
from .transformer import Transformer

_HOST = "the host's template"
_MAKERS = "the examples of its makers"
_FLUX = "https://github.com/black-forest-labs/flux"


def _flow(steps: int, cfg: float, origin: str, *, size: int = 1024, **more: str) -> Drawing:
    """Return how a flow model draws; euler and the simple schedule where nothing else is said."""
    names = {"sampler": "euler", "scheduler": "simple"} | more
    return Drawing(size=size, steps=steps, cfg=cfg, origin=origin, **names)


class StableDiffusion3(Transformer):
    """SD3 and SD3.5."""

    name, models, stacks, image, text = "sd3", ("SD3",), ("joint_blocks",), 1, "context_embedder"
    spec = ("stable-diffusion-3", "https://github.com/Stability-AI/generative-models")
    drawing = _flow(20, 4.0, _HOST, scheduler="sgm_uniform")


class Flux(Transformer):
    """Flux.1, which reads a guidance scale; it learns at 1, as trainers advise: no guidance."""

    name, models, stacks, text = "flux", ("Flux",), ("double_blocks", "single_blocks"), "txt_in"
    guidance, spec = 1.0, ("flux-1-dev", _FLUX)
    drawing = _flow(20, 1.0, _HOST)


class FluxSchnell(Flux):
    """Flux.1 schnell, distilled to few steps."""

    name, distilled, spec = "flux schnell", True, ("flux-1-schnell", _FLUX)
    drawing = _flow(4, 1.0, _MAKERS)

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and not base.diffusion_model.params.guidance_embed


class Flux2(Flux):
    """Flux.2 dev."""

    name, models, spec = "flux2", ("Flux2",), None
    drawing = _flow(20, 1.0, _HOST)


class Flux2Klein(Flux2):
    """Flux.2 Klein, which reads no guidance scale. Base and distilled look the same in a file."""

    name, guidance = "flux2 klein", None
    drawing = _flow(20, 5.0, f"{_HOST} for Base; the distilled ones take 4 steps at cfg 1")

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and not base.diffusion_model.params.guidance_embed


class LongCat(Flux):
    """LongCat-Image."""

    name, models, guidance, spec = "longcat", ("LongCatImage",), None, None
    drawing = _flow(20, 4.0, _HOST)


class Chroma(Flux):
    """Chroma, a Flux without the distilled guidance: it has only ever seen the host's 0."""

    name, models, guidance = "chroma", ("Chroma",), None
    spec = ("chroma", "https://huggingface.co/lodestones/Chroma")
    drawing = _flow(26, 3.5, _HOST, scheduler="beta")


class Lumina2(Transformer):
    """Lumina-Image 2.0."""

    name, models, stacks, text = "lumina2", ("Lumina2",), ("layers",), "cap_embedder.1"
    spec = ("lumina-2", "https://github.com/Alpha-VLLM/Lumina-Image-2.0")
    drawing = _flow(30, 4.0, _HOST, sampler="res_multistep")


class ZImage(Lumina2):
    """Z-Image. Turbo and Base look the same in a file; the numbers are those of Turbo."""

    name, distilled, spec = "z-image", True, None
    drawing = _flow(8, 1.0, f"{_HOST} for Turbo; Base takes 25 steps at cfg 4", sampler="res_multistep")

    def recognises(self, base: BaseModel) -> bool:
        return super().recognises(base) and base.model_config.unet_config.get("z_image_modulation", False)


class QwenImage(Transformer):
    """Qwen-Image."""

    name, models, stacks, image, text = "qwen-image", ("QwenImage",), ("transformer_blocks",), 1, "txt_in"
    drawing = _flow(50, 4.0, f"{_HOST}, but for the size")


class Anima(Transformer):
    """Anima, a Cosmos Predict2 with a text encoder of its own."""

    name, models, stacks, text = "anima", ("Anima",), ("blocks",), "blocks.0.cross_attn.k_proj"
    drawing = _flow(30, 4.0, _HOST)


class Krea2(Transformer):
    """Krea 2. Turbo and others look the same in a file; the numbers are those of Turbo."""

    name, models, stacks, distilled = "krea2", ("Krea2",), ("blocks",), True
    drawing = _flow(8, 1.0, f"{_HOST} for Turbo")


class HiDream(Transformer):
    """HiDream-I1."""

    name, models, stacks = "hidream", ("HiDream",), ("double_stream_blocks", "single_stream_blocks")
    drawing = _flow(50, 5.0, f"{_HOST} for Full", sampler="uni_pc")


class HunyuanImage(Transformer):
    """HunyuanImage 2.1."""

    name, models, text = "hunyuan-image", ("HunyuanImage21",), "txt_in.input_embedder"
    stacks, patch = ("double_blocks", "single_blocks"), 1
    spec = ("hunyuan-image-2.1", "https://github.com/Tencent-Hunyuan/HunyuanImage-2.1")
    drawing = _flow(50, 3.5, _MAKERS, size=2048)


class PixArt(Transformer):
    """PixArt alpha and sigma, which predict epsilon."""

    name, models, stacks, text = "pixart", ("PixArt",), ("blocks",), "y_embedder.y_proj.fc1"
    drawing = Drawing(size=1024, steps=20, cfg=4.5, origin=_MAKERS)


class AuraFlow(Transformer):
    """AuraFlow."""

    name, models, stacks, image = "auraflow", ("AuraFlow",), ("double_layers", "single_layers"), 1
    text = "cond_seq_linear"
    drawing = _flow(50, 3.5, _MAKERS)


class HunyuanDiT(Transformer):
    """Hunyuan-DiT, which predicts v."""

    name, models, stacks = "hunyuan-dit", ("HunyuanDiT",), ("blocks",)
    drawing = Drawing(size=1024, steps=50, cfg=6.0, origin=_MAKERS)


class Kandinsky5(Transformer):
    """Kandinsky 5 for images."""

    name, models, stacks = "kandinsky5", ("Kandinsky5Image",), ("visual_transformer_blocks",)
    text = "text_embeddings.in_layer"
    drawing = _flow(50, 3.5, _HOST)
