"""Models of the host's own classes with random weights, as large as people have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.random_model import UNET

#: A model is made on the device where it takes no more than such a share of what is free there.
ON_DEVICE = 0.9


class TooLarge(Exception):
    """Raised where there is no room for the weights of a model, wherever they are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Say how large a model is, and what it is trained on.

    Attributes:
        config: the class in the host's `supported_models`.
        network: what the loader finds in a file of it.
        bases: dtypes of weights in which people have it, the usual one first.
        latents: channels, height and width.
        length, context, pooled: of encoded prompts: tokens, and widths; 0 for none.
        batch, similarity: images in a step of training, and whether it has the similarity term.
        cfg: at which it draws here, so that a step has two rows without enhancement.
        weights: how many, in billions.
        work: TFLOP of an evaluation on one image, roughly.
    """

    config: str
    network: Mapping[str, Any]
    bases: tuple[str, ...]
    latents: tuple[int, int, int]
    length: int
    context: int
    pooled: int = 0
    batch: int = 4
    similarity: bool = True
    cfg: float = 7.5
    weights: float
    work: float

    def prompt(self, generator: torch.Generator) -> list[list[Any]]:
        """Return a random CONDITIONING."""
        context = torch.randn(1, self.length, self.context, generator=generator)
        pooled = torch.randn(1, self.pooled, generator=generator)
        return [[context, {"pooled_output": pooled} if self.pooled else {}]]


SDXL: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False, "context_dim": 2048,
    "num_classes": "sequential", "adm_in_channels": 2816, "num_head_channels": 64,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
FLUX: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 3072,
    "num_heads": 24, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0, "theta": 10000, "qkv_bias": True,
    "depth": 19, "depth_single_blocks": 38, "context_in_dim": 4096, "vec_in_dim": 768,
    "guidance_embed": True, "txt_ids_dims": [], "yak_mlp": False, "txt_norm": False,
}  # fmt: skip

#: In the order of what people have.
SIZES: dict[str, Size] = {
    "SD1.5, 512": Size(
        config="SD15", network=UNET | {"model_channels": 320}, bases=("float16", "bfloat16", "float32"),
        latents=(4, 64, 64), length=77, context=768, weights=0.86, work=0.8,
    ),
    "SDXL, 1024": Size(
        config="SDXL", network=SDXL, bases=("float16", "bfloat16", "float32"),
        latents=(4, 128, 128), length=77, context=2048, pooled=1280, weights=2.57, work=6.0,
    ),
    "Flux.1 dev, 1024": Size(
        config="Flux", network=FLUX, bases=("bfloat16", "float8_e4m3fn", "float16", "float32"),
        latents=(16, 128, 128), length=256, context=4096, pooled=768, batch=1, similarity=False,
        cfg=4.0, weights=11.9, work=120.0,
    ),
}  # fmt: skip

_NARROW: dict[str, dict[str, Any]] = {
    "SD1.5, 512": {"model_channels": 32},
    "SDXL, 1024": {
        "model_channels": 64, "transformer_depth": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
    },
    "Flux.1 dev, 1024": {"hidden_size": 256, "num_heads": 2, "depth": 1, "depth_single_blocks": 2},
}  # fmt: skip
#: The same, small enough for a CPU.
THIN: dict[str, Size] = {
    name: replace(
        size, network={**size.network, **_NARROW[name]}, latents=(size.latents[0], 8, 8),
        batch=min(size.batch, 3), weights=0.02, work=1.0,
    )
    for name, size in SIZES.items()
}  # fmt: skip


def random_of_size(size: Size, base: str) -> Any:
    """Return a MODEL with random weights in a dtype: on the device if there is room, else in system memory.

    Raises:
        TooLarge: there is no room in either.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    device, dtype = management.get_torch_device(), getattr(torch, base)
    needed = size.weights * 1e9 * dtype.itemsize
    place = device if needed <= ON_DEVICE * management.get_free_memory(device) else torch.device("cpu")
    if place.type == "cpu":
        check_system_memory(needed)
    config = getattr(comfy.supported_models, size.config)(dict(size.network))
    config.set_inference_dtype(  # as the host's loader chooses it
        dtype, management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    )
    with torch.inference_mode():
        model = config.get_model({}, "", device=place)
        fill(model.diffusion_model, device)
    return comfy.model_patcher.CoreModelPatcher(
        model.eval(), load_device=device, offload_device=management.unet_offload_device()
    )


def fill(network: nn.Module, device: torch.device) -> None:
    """Give weights random values under which what flows through keeps its size; drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)

    def value(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return torch.full(weight.shape, float(name.endswith(("weight", "scale"))), device=device)
        return torch.randn(weight.shape, device=device, generator=generator) * weight[0].numel() ** -0.5

    for name, weight in network.named_parameters():
        weight.copy_(value(name, weight))


def check_system_memory(needed: float) -> None:
    """Raise TooLarge unless so many bytes of system memory are free, and some more."""
    free = psutil.virtual_memory().available
    if 1.1 * needed > free:
        raise TooLarge(f"{needed / 2**30:.0f} GB of weights, {free / 2**30:.0f} GB of system memory free")
