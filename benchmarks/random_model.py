"""A MODEL of the host laid out as Stable Diffusion 1.x, with random weights."""

from __future__ import annotations

from typing import Any

import torch

UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "context_dim": 768,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_linear_in_transformer": False, "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip


def random_model(width: int, dtype: torch.dtype | None = None) -> Any:
    """Return a MODEL, in float16 where there is a GPU; 320 is the width of Stable Diffusion 1.5.

    Args:
        dtype: of the weights, in place of that; where the device does not compute in it, they are cast.
    """
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    device = comfy.model_management.get_torch_device()
    with torch.inference_mode():  # as a loader makes it
        config = comfy.supported_models.SD15({**UNET, "model_channels": width})
        stored = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        cast = torch.float32 if device.type == "cpu" and stored != torch.float32 else None
        config.set_inference_dtype(stored, cast)
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for weight in model.diffusion_model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
            else:
                weight.fill_(0.5)
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model.eval(), load_device=device, offload_device=offload)
