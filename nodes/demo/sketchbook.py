"""The sketchbook model as ordinary host objects: MODEL, CLIP and VAE built from the host's own classes.

The UNet is laid out as that of SD1.x, only small, and predicts v. Latents are pixels: brightness in
patches of 4 x 4 and colour at half the resolution, 24 channels of 1/4 the size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import folder_paths
import torch
from comfy.clip_model import CLIPTextModel
from torch import Tensor

from ...domaingallery_core.sketchbook.pixels import CHANNELS, PATCH, PixelCodec
from ...domaingallery_core.sketchbook.weights import Weights, token_table
from ..host.families import Drawing
from ..host.families.unet import StableDiffusionV

TEXT_WIDTH = 128
TEXT_LENGTH = 24
UNET = {
    "image_size": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": TEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}
TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": TEXT_WIDTH,
    "num_attention_heads": 4,
    "intermediate_size": 4 * TEXT_WIDTH,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": TEXT_LENGTH,
    "eos_token_id": 49407,
}


class Operations(comfy.ops.manual_cast):
    """The host's layers with eight groups in each normalisation: 32 are too many for 64 channels."""

    class GroupNorm(comfy.ops.manual_cast.GroupNorm):
        def __init__(self, num_groups: int = 32, num_channels: int = 0, **options):
            super().__init__(min(num_groups, 8), num_channels, **options)


class SketchbookLatents(comfy.latent_formats.LatentFormat):
    """Pixels as latents, with the mean of each patch as preview."""

    latent_channels = CHANNELS
    spacial_downscale_ratio = PATCH

    def __init__(self) -> None:
        self.latent_rgb_factors, self.latent_rgb_factors_bias = PixelCodec.preview_factors()


class SketchbookConfig(comfy.supported_models_base.BASE):
    """The model family: SD1.x's UNet with v-prediction and a longer noise schedule."""

    unet_config: ClassVar[dict[str, Any]] = UNET
    unet_extra_config: ClassVar[dict[str, int]] = {"num_heads": -1, "num_head_channels": 32}
    latent_format = SketchbookLatents
    sampling_settings: ClassVar[dict[str, float]] = {"linear_start": 0.00085, "linear_end": 0.02}
    custom_operations = Operations
    memory_usage_factor = 0.5

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self):
        return False


class Sketchbook(StableDiffusionV):
    """The demo model as a family of its own: small images, little guidance, large steps."""

    name = "sketchbook"
    drawing = Drawing(
        size=64, steps=10, cfg=1.8, scheduler="normal", origin="the demo, which measures what they draw"
    )
    lengths: ClassVar[dict[str, tuple[int, float]]] = {
        "erasure": (170, 6e-3),
        "domaingallery": (120, 2e-3),
        "personalization": (170, 3e-3),
        "dreambooth_lora": (200, 8e-3),
    }

    def recognises(self, base: comfy.model_base.BaseModel) -> bool:
        return isinstance(base.model_config, SketchbookConfig)


class SketchbookTextModel(comfy.sd1_clip.SDClipModel):
    """A two-layer CLIP text encoder."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=dict(TEXT), max_length=TEXT_LENGTH,
            return_projected_pooled=False, model_options=model_options or {},
        )  # fmt: skip


class SketchbookClip(comfy.sd1_clip.SD1ClipModel):
    """The text encoder under the name `l`, as in SD1.x."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=SketchbookTextModel
        )


class _Tokens(comfy.sd1_clip.SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {},
            max_length=TEXT_LENGTH, embedding_size=TEXT_WIDTH,
        )  # fmt: skip


class SketchbookTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The host's CLIP tokenizer, cut at 24 tokens."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=_Tokens)


class _ClipTarget:
    params: ClassVar[dict[str, Any]] = {}
    clip = SketchbookClip
    tokenizer = SketchbookTokenizer


def build_diffusion(state: dict[str, Tensor] | None) -> comfy.model_base.BaseModel:
    """Build the diffusion model on its load device; without a state its weights are uninitialised."""
    config = SketchbookConfig(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(
        config, comfy.model_base.ModelType.V_PREDICTION, device=torch.device("cpu")
    )
    if state is not None:
        model.diffusion_model.load_state_dict(state)
    return model


def build_text(state: dict[str, Tensor] | None, rows: tuple[Tensor, Tensor] | None) -> CLIPTextModel:
    """Build the text encoder; `rows` are the trained rows of the vocabulary (index, weight)."""
    model = CLIPTextModel(dict(TEXT), torch.float32, torch.device("cpu"), comfy.ops.manual_cast)
    if state is not None:
        table = token_table(TEXT_WIDTH)
        if rows is not None:
            table[rows[0]] = rows[1]
        model.load_state_dict({**state, "text_model.embeddings.token_embedding.weight": table})
    return model


def build_vae() -> comfy.sd.VAE:
    """Build a VAE around the pixel codec, from the host's own for pixel space."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = PixelCodec()
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    vae.downscale_ratio = vae.upscale_ratio = PATCH
    vae.latent_channels = CHANNELS
    vae.working_dtypes = [torch.float32]
    vae.vae_dtype = torch.float32
    return vae


def load_diffusion(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Load the shipped weights as a MODEL, which the host calls again for a copy that it may change."""
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(
        build_diffusion(Weights.load().unet),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_diffusion, ())
    return patcher


def load_sketchbook() -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load the shipped weights as MODEL, CLIP and VAE."""
    weights = Weights.load()
    patcher = load_diffusion()
    clip = comfy.sd.CLIP(
        _ClipTarget(), embedding_directory=folder_paths.get_folder_paths("embeddings"), parameters=1
    )
    clip.cond_stage_model.clip_l.transformer.load_state_dict(
        build_text(weights.text, weights.rows).state_dict()
    )
    return patcher, clip, build_vae()
