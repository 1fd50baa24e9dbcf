"""A MODEL small enough for tests, of the host's own classes, and prompts for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

WIDTH, TOKENS, SIZE = 32, 6, 8
UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_spatial_transformer": True,
    "legacy": False,
}


def tiny_model(
    kind: str = "EPS",
    *,
    pooled: int = 0,
    seed: int = 0,
    latent_format: Any = None,
    dtype: torch.dtype = torch.float32,
    context: int = UNET["context_dim"],
) -> Any:
    """Return a ModelPatcher of a UNet with random weights, made in inference mode as the host makes them.

    Args:
        kind: a name of the host's ModelType.
        pooled: the width of a pooled text embedding, as SDXL has; 0 for none.
        dtype: of the weights, and what the host computes in.
        context: the width of a text embedding.
    """
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):
        unet_config: ClassVar = UNET | {"context_dim": context}
        unet_extra_config: ClassVar = {"num_heads": 2, "num_head_channels": -1}
        sampling_settings: ClassVar = {}
        memory_usage_factor = 0.1

        def inpaint_model(self) -> bool:
            return False

    class Pooled(comfy.model_base.BaseModel):
        """A model with size conditioning like SDXL's, in miniature."""

        def encode_adm(self, **given):
            size = torch.tensor([[given["width"] / 64, given["height"] / 64]])
            return torch.cat([given["pooled_output"], size], dim=1)

    Config.latent_format = latent_format or comfy.latent_formats.SD15
    unet = UNET | {"context_dim": context}
    if pooled:
        unet |= {"num_classes": "sequential", "adm_in_channels": pooled + 2}
    with torch.inference_mode():
        config = Config(unet)
        config.set_inference_dtype(dtype, None)
        base = Pooled if pooled else comfy.model_base.BaseModel
        model = base(config, comfy.model_base.ModelType[kind], device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.diffusion_model.named_parameters():
            scale = 1.0 if weight.ndim == 1 else weight[0].numel() ** -0.5
            centre = 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale * 0.5 + centre)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


def conditioning(seed: int, *, tokens: int = TOKENS, pooled: int = 0) -> list[list[Any]]:
    """Return a random CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return [[torch.randn(1, tokens, 16, generator=generator), extra]]


def tiny_prompts(nodes: Any, *more: Mapping[str, Any], seed: int = 0, pooled: int = 0, **changes: Any) -> Any:
    """Return DomainPrompts with random embeddings.

    Args:
        more: of each further category, what differs from the first.
        changes: values to put in the place of those that are made here.
    """
    names = ("target", "source", "bare", "empty")
    made = {name: conditioning(seed + i, pooled=pooled) for i, name in enumerate(names)}
    first = {"identifier": "sks", "category": "face", **made, **changes}
    sockets = nodes("nodes.sockets")
    return sockets.DomainPrompts(tuple(sockets.CategoryPrompts(**{**first, **one}) for one in ({}, *more)))


def tiny_latents(count: int, seed: int = 0, channels: int = 4) -> torch.Tensor:
    """Return random latents, N C H W, as a VAE of SD1.x would scale them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return torch.randn(count, channels, SIZE, SIZE, generator=generator) * 5


def tiny_part(nodes: Any, sources: int = 5, *, seed: int = 0, **changes: Any) -> Any:
    """Return a LatentPart of that many source and of three target images, with other values where given."""
    examples = nodes("domaingallery_core.data.examples").Examples
    images = {
        "source": examples(tiny_latents(sources, seed)),
        "target": examples(tiny_latents(3, seed + 1)),
    }
    return nodes("nodes.sockets").LatentPart(**{**images, **changes})


def tiny_dataset(nodes: Any, sources: int = 5, **changes: Any) -> Any:
    """Return a LatentDataset of one part."""
    return nodes("nodes.sockets").LatentDataset((tiny_part(nodes, sources, **changes),))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of all weights, to compare with later."""
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of weights are the same bytes under the same names."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def host_module(name: str) -> Any:
    """Return a module of the host that is imported already."""
    return sys.modules[name]
