"""Whether a device can hold the weights of a MODEL as they were loaded."""

from __future__ import annotations

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ....domaingallery_core.errors import InputError


def check_held(model: ModelPatcher) -> None:
    """Check that the device of a MODEL has the eight-bit numbers that its weights are, before they move.

    Raises:
        InputError: it has not, as some have no float8.
    """
    dtypes = {weight.dtype for weight in model.model.diffusion_model.parameters()}
    for dtype in sorted(dtypes, key=str):
        eight_bits = dtype.is_floating_point and dtype.itemsize == 1
        if eight_bits and not comfy.model_management.supports_cast(model.load_device, dtype):
            name = str(dtype).removeprefix("torch.")
            raise InputError(
                f"Expected a model whose weights {model.load_device.type} can hold, got some in {name}. "
                "Load it in float16 or bfloat16: weight_dtype of Load Diffusion Model, or another file."
            )
