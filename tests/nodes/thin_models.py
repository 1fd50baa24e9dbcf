"""Diffusion models of many families in the file layout that the stock loader knows, thin and random.

What the loader reads off a file is as real as it must be for the family to be told; the rest is as small as
the network's own constructor takes it.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Thin:
    """Say how a family is made thin.

    Attributes:
        config: the class in the host's `supported_models`.
        network: what its constructor gets; the loader finds the same in the file.
        context, pooled: widths of what its text encoders give; 0 for none.
        length: of every encoded prompt; 0 where it is that of the text.
        whole_numbers: whether the text encoder hands on tokens as numbers besides.
        side: of latents: more where 16 are too few, and fewer where the network is large however thin.
        markers: tensors in the file that say something by being there.
    """

    config: str
    network: dict[str, Any]
    context: int
    pooled: int = 0
    length: int = 0
    whole_numbers: bool = False
    side: int = 16
    markers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def latent(self) -> tuple[int, int, bool]:
        """Return channels, pixels a latent, and whether there is an axis for frames, as the host says."""
        config = getattr(importlib.import_module("comfy.supported_models"), self.config)
        form = config.latent_format
        return form.latent_channels, form.spacial_downscale_ratio, form.latent_dimensions == 3


UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False,
    "use_spatial_transformer": True, "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
SD2 = UNET | {
    "num_res_blocks": [1, 1], "channel_mult": [1, 1], "transformer_depth": [1, 0], "adm_in_channels": None,
    "transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1, "context_dim": 1024,
    "use_linear_in_transformer": True, "num_head_channels": 64,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 256,
    "num_heads": 2, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0, "theta": 10000, "depth": 2, "qkv_bias": True,
    "depth_single_blocks": 2, "context_in_dim": 64, "vec_in_dim": 32, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
    "axes_dim": [16, 56, 56], "hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "depth": 2,
    "depth_single_blocks": 2, "theta": 256, "qkv_bias": True, "vec_in_dim": 768, "context_in_dim": 64,
    "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip

MODELS: dict[str, Thin] = {
    "sd2": Thin(config="SD20", network=SD2, context=1024, length=77),
    "sd2-v": Thin(
        config="SD20", context=1024, length=77,
        network=SD2 | {
            "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 1, 1, 1],
            "transformer_depth": [0, 0, 0, 0, 1, 0, 0, 0],
            "transformer_depth_output": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        },
        # The spread of these numbers is how the loader tells it.
        markers={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 320)},
    ),
    "sd3": Thin(
        config="SD3", context=4096, pooled=2048, length=77,
        network={
            "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 3, "input_size": None,
            "adm_in_channels": 2048, "num_patches": 1024, "pos_embed_max_size": 32, "qk_norm": "rms",
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 192}
            },
            "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [0],
        },
    ),
    "flux": Thin(config="Flux", network=FLUX, context=64, pooled=32, length=32),
    "flux-schnell": Thin(
        config="FluxSchnell", network=FLUX | {"guidance_embed": False}, context=64, pooled=32, length=32
    ),
    "flux2": Thin(
        config="Flux2", context=64,
        network=FLUX | {
            "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "mlp_ratio": 3.0, "theta": 2000,
            "in_channels": 128, "out_channels": 128, "global_modulation": True, "mlp_silu_act": True,
            "qkv_bias": False, "ops_bias": False, "patch_size": 1, "vec_in_dim": None, "txt_ids_dims": [3],
            "default_ref_method": "index", "ref_index_scale": 10.0,
        },
    ),
    "chroma": Thin(
        config="Chroma", context=64, side=8,
        network={name: value for name, value in FLUX.items() if name != "guidance_embed"} | {
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "hidden_size": 3072,
            "num_heads": 24, "depth": 1, "depth_single_blocks": 1, "in_dim": 64, "out_dim": 3072,
            "hidden_dim": 5120, "n_layers": 5, "vec_in_dim": None,
        },
    ),
    "lumina2": Thin(
        config="Lumina2", context=64, side=8,
        network={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 64,
            "n_layers": 2, "qk_norm": True, "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32],
            "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
        },
    ),
    "z-image": Thin(  # 0.9 billion weights at least: the loader has its width and its refiners in its code
        config="ZImage", context=64, side=8,
        network={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 64,
            "n_layers": 1, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
        },
    ),
    "qwen-image": Thin(
        config="QwenImage", network={"image_model": "qwen_image", "in_channels": 64, "num_layers": 1},
        context=3584, side=8,
    ),
    "anima": Thin(
        config="Anima", context=1024, whole_numbers=True,
        network={
            "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
            "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 512,
            "concat_padding_mask": True, "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d",
            "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
            "use_adaln_lora": True, "adaln_lora_dim": 256, "extra_per_block_abs_pos_emb": False,
            "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
            "rope_t_extrapolation_ratio": 1.0, "extra_h_extrapolation_ratio": 1.0,
            "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
            "rope_enable_fps_modulation": False,
        },
    ),
    "krea2": Thin(
        config="Krea2", context=2 * 160,
        network={
            "image_model": "krea2", "features": 256, "channels": 16, "patch": 2, "layers": 2, "heads": 2,
            "kvheads": 1, "txtlayers": 2, "txtdim": 160,
        },
    ),
    "wan2.1": Thin(
        config="WAN21_T2V", context=4096, length=32,
        network={
            "image_model": "wan2.1", "dim": 256, "out_dim": 16, "num_heads": 2, "ffn_dim": 512, "in_dim": 16,
            "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1),
            "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "model_type": "t2v",
        },
    ),
    "hunyuan-video": Thin(config="HunyuanVideo", network=HUNYUAN, context=64, pooled=768),
    "hunyuan-image": Thin(
        config="HunyuanImage21", context=64,
        network=HUNYUAN | {
            "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64],
            "vec_in_dim": None, "guidance_embed": False,
        },
    ),
    "pixart-sigma": Thin(
        config="PixArtSigma", context=4096, side=40,
        network={
            "image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152,
            "in_channels": 4, "depth": 2, "model_max_length": 120, "micro_condition": False,
        },
    ),
    "auraflow": Thin(  # 0.6 billion weights at least: its width is in the code
        config="AuraFlow", context=2048, side=8,
        network={"cond_seq_dim": 2048, "n_double_layers": 1, "n_layers": 2},
    ),
    "kandinsky5": Thin(
        config="Kandinsky5Image", context=3584, pooled=768, side=8,
        network={
            "image_model": "kandinsky5", "model_dim": 2560, "axes_dims": (32, 48, 48), "time_dim": 64,
            "rope_scale_factor": (1.0, 1.0, 1.0), "ff_dim": 256, "visual_embed_dim": 64,
            "num_text_blocks": 1, "num_visual_blocks": 1,
        },
    ),
}  # fmt: skip


def write_model(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a file that the stock loader of diffusion models takes for one of a family."""
    thin = MODELS[family]
    config = getattr(importlib.import_module("comfy.supported_models"), thin.config)(dict(thin.network))
    model = config.get_model({}, "", device="cpu" if family == "pixart-sigma" else "meta")
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in model.diffusion_model.state_dict().items()}
    weights = {name: _weight(name, shape, generator).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"thin_{family}.safetensors"
    save_file(weights | thin.markers, path)
    return path


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a random weight under which what flows through the network keeps its size."""
    if len(shape) < 2:
        plain = torch.ones(shape) if name.endswith(("weight", "scale")) else torch.zeros(shape)
        return plain + 0.02 * torch.randn(shape, generator=generator)
    scale = 0.02 if "embed" in name and len(shape) == 2 and shape[0] > 10_000 else 1.0
    return scale * math.prod(shape[1:]) ** -0.5 * torch.randn(shape, generator=generator)
