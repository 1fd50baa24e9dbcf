"""Checkpoints of SD1.x and SDXL in their real file formats, with few and random weights.

All names and shapes that the stock loader tells a family by are real, text encoder and VAE are whole. The
UNet is as narrow as the loader's detection allows. Most weights of the text encoders are zero, which takes no
space on disk.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "legacy": False,
}
SD1 = SHARED | {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "adm_in_channels": None,
    "num_heads": 8,
}
SDXL = SHARED | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 1, 0, 0, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_head_channels": 64,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def shapes(family: str) -> dict[str, torch.Size]:
    """Return the names and shapes of a checkpoint of a family, "sd1" or "sdxl", as the host would save it."""
    import comfy.clip_model
    import comfy.ldm.models.autoencoder
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = SD1 if family == "sd1" else SDXL
    config = (comfy.supported_models.SD15 if family == "sd1" else comfy.supported_models.SDXL)(unet)
    encoders = {"clip_l": "sd1_clip_config.json"}
    if family == "sdxl":
        encoders["clip_g"] = "clip_config_bigg.json"
    operations = comfy.ops.disable_weight_init
    text: dict[str, Tensor] = {}
    folder = Path(comfy.sd1_clip.__file__).parent
    with torch.device("meta"):
        for name, file in encoders.items():
            settings = json.loads((folder / file).read_text())
            model = comfy.clip_model.CLIPTextModel(settings, torch.float16, torch.device("meta"), operations)
            text |= {f"{name}.transformer.{key}": tensor for key, tensor in model.state_dict().items()}
        network = UNetModel(**unet, dtype=torch.float16, device="meta", operations=operations)
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(embed_dim=4, ddconfig=VAE)
        parts = {
            **config.process_unet_state_dict_for_saving(network.state_dict()),
            **config.process_clip_state_dict_for_saving(text),
            **config.process_vae_state_dict_for_saving(vae.state_dict()),
        }
    return {name: tensor.shape for name, tensor in parts.items()}


def is_zero(name: str, shape: torch.Size, *, reads: bool = False) -> bool:
    """Tell whether a weight is zero: the layers of text encoders, which then pass embeddings on.

    Args:
        reads: whether they are to do more than that.
    """
    encoder = name.startswith(("cond_stage_model.", "conditioner.")) and not reads
    layer = ".layers." in name or ".resblocks." in name
    return (encoder and layer and len(shape) > 1) or name.endswith(("bias", "position_ids"))


def weight(name: str, shape: torch.Size, noises: dict[float, Tensor], *, reads: bool = False) -> Tensor:
    """Return a weight in float16, a view of noise that is shared between weights of one scale."""
    if is_zero(name, shape, reads=reads):
        return torch.zeros(1, dtype=torch.float16).expand(shape)
    if len(shape) == 1:
        return torch.ones(1, dtype=torch.float16).expand(shape)
    embedding = "embedding" in name or name.endswith("text_projection")
    scale = 0.2 if embedding else shape[1:].numel() ** -0.5
    if scale not in noises:
        noise = torch.randn(120_000, generator=torch.Generator().manual_seed(0))
        noises[scale] = (noise * scale).half()
    strides = torch.empty(shape, device="meta").stride()
    row = 2 if shape[0] > 4000 else 29
    return noises[scale].as_strided(shape, (row, *strides[1:]), len(name) * 97 % 1000)


def write_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """Write a safetensors file in which zeros are holes that take no space on disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in weights.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, tensor in weights.items():
            if not is_zero(name, tensor.shape):
                file.seek(start + header[name]["data_offsets"][0])
                file.write(tensor.contiguous().numpy().tobytes())
        file.truncate(start + end)


def write_checkpoint(folder: Path, family: str, *, reads: bool = False) -> Path:
    """Write a checkpoint: SD1.x as the .ckpt of its day, SDXL as safetensors.

    Args:
        reads: whether the layers of the text encoder of SD1.x do something, so that they can learn.
    """
    noises: dict[float, Tensor] = {}
    weights = {name: weight(name, shape, noises, reads=reads) for name, shape in shapes(family).items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("thin_sd1.ckpt" if family == "sd1" else "thin_sdxl.safetensors")
    if family == "sd1":  # pickled views share their storage, so the file has a few megabytes
        torch.save({"state_dict": weights, "global_step": 0}, path)
    else:
        write_safetensors(path, weights)
    return path
