"""Whether prompts come from the text encoder of a MODEL, as far as that can be told."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_base
from comfy.model_patcher import ModelPatcher

from ...domaingallery_core.errors import InputError
from ..sockets import Conditioning
from .families import family_of

# Models that read numbers beside the text, but no pooled embedding of it.
UNPOOLED = (comfy.model_base.SD21UNCLIP, comfy.model_base.SVD_img2vid)


def check_text_encoder(model: ModelPatcher, conditionings: Iterable[Conditioning]) -> None:
    """Check that conditionings have what a network reads, and its width, where it can be told.

    Raises:
        InputError: the text encoder of another model made one.
    """
    base = model.model
    config = getattr(getattr(base, "model_config", None), "unet_config", {})
    width = config.get("context_dim") if config.get("use_spatial_transformer") else None
    width = width or family_of(model).text_width(base.diffusion_model)
    pooled = base.adm_channels and not isinstance(base, UNPOOLED)
    for context, extra in (entry for conditioning in conditionings for entry in conditioning):
        found = 0 if context is None else context.shape[-1]
        if width and found != width:
            raise InputError(
                f"Expected prompts of the text encoder of this model ({width} wide), got {found}. "
                "Connect the CLIP that belongs to the model."
            )
        if pooled and extra.get("pooled_output") is None:
            raise InputError(
                "Expected prompts with a pooled embedding, as this model reads, got none. "
                "Connect the CLIP that belongs to the model."
            )
