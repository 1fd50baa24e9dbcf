"""The conditionings of an enhancement: made fit for a guider, compared, and located in the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import comfy.conds
import comfy.hooks
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...domaingallery_core.errors import InputError
from ..sockets import Conditioning

Cond = list[dict[str, Any]]  # a CONDITIONING as guiders hold it

# What belongs to one prompt and must not be taken over from another.
OWN = {
    "area", "strength", "set_area_to_bounds", "mask", "mask_strength", "start_percent", "end_percent",
    "clip_start_percent", "clip_end_percent", "default", "hooks", "uuid", "model_conds", "cross_attn",
    "pooled_output",
}  # fmt: skip
# What decides a prediction, besides the tensors for the network.
DECISIVE = (
    "area", "strength", "mask", "mask_strength", "timestep_start", "timestep_end", "default", "hooks",
    "control", "gligen",
)  # fmt: skip
LIMITED = {"area", "mask", "timestep_start", "timestep_end", "default"}


def base_for(conds: dict[str, Cond], name: str, conditioning: Conditioning) -> Cond:
    """Return a base as guiders hold it, to be compared with the conditioning of a name in a guider's.

    What that has besides the prompt, such as a ControlNet, an image to inpaint or a size, the base has as
    well: the two are to differ in nothing but their words.

    Raises:
        InputError: the guider lacks a conditioning, or another text encoder made it.
    """
    for needed in ("positive", name):
        if not conds.get(needed):
            raise InputError(
                f"Expected a guider with a {needed} conditioning, got one without. Use CFGGuider; the mode "
                "VN-N needs no negative."
            )
    base = comfy.sampler_helpers.convert_cond(conditioning)
    check_encoder(base, conds["positive"])
    shared = {key: value for key, value in conds[name][0].items() if key not in OWN}
    return [{"prompt_type": name, **shared, **cond} for cond in base]


def check_encoder(base: Cond, positive: Cond) -> None:
    """Check that two conditionings come from one text encoder.

    Raises:
        InputError: their widths differ, or one is empty.
    """
    if not base:
        raise InputError("Expected a base conditioning, got an empty one. Connect an encoded prompt.")
    for name, what in (("cross_attn", "numbers for a token"), ("pooled_output", "numbers for a prompt")):
        widths = [_width(cond[0].get(name)) for cond in (base, positive)]
        if widths[1] and widths[0] != widths[1]:
            raise InputError(
                f"Expected base and positive from one text encoder, got {widths[0]} and {widths[1]} {what}. "
                "Encode both with the text encoder that belongs to the model."
            )


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[-1]


def register_hooks(guider: comfy.samplers.CFGGuider, bases: dict[str, Cond]) -> None:
    """Do for conditionings that come late what the host has done for the guider's own."""
    if not any(has_hooks(base) for base in bases.values()):
        return
    conds = guider.conds | bases
    comfy.samplers.preprocess_conds_hooks(conds)
    own: dict[str, Any] = {"transformer_options": {}}
    comfy.sampler_helpers.prepare_model_patcher(guider.model_patcher, conds, own)
    options = guider.model_options
    if "registered_hooks" in own:
        options["registered_hooks"] = own["registered_hooks"]
    comfy.patcher_extension.merge_nested_dicts(
        options.setdefault("to_load_options", {}), own["to_load_options"], copy_dict1=False
    )
    comfy.samplers.filter_registered_hooks_on_conds(conds, options)
    if comfy.samplers.get_total_hook_groups_in_conds(conds) > 1:  # else weights would be patched at each step
        guider.model_patcher.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed


def has_hooks(cond: Cond) -> bool:
    """Tell whether a conditioning brings changes of the model, such as a LoRA of its own."""
    return any("hooks" in each or ("control" in each and each["control"].get_extra_hooks()) for each in cond)


def lacks_lora(model: ModelPatcher, conds: Iterable[Cond]) -> bool:
    """Tell whether neither a MODEL nor one of the conditionings has a LoRA."""
    return not (model.patches or model.injections or any(map(has_hooks, conds)))


def same(first: Cond, second: Cond) -> bool:
    """Tell whether two conditionings, ready for the network, give the same prediction."""
    return len(first) == len(second) and all(
        all(_equal(a.get(key), b.get(key)) for key in DECISIVE)
        and a["model_conds"].keys() == b["model_conds"].keys()
        and all(
            type(a["model_conds"][key]) is type(b["model_conds"][key])
            and _equal(a["model_conds"][key].cond, b["model_conds"][key].cond)
            for key in a["model_conds"]
        )
        for a, b in zip(first, second, strict=True)
    )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = all(getattr(first, name) == getattr(second, name) for name in ("dtype", "device", "shape"))
        return alike and torch.equal(first, second)
    return type(first) is type(second) and bool(comfy.conds.is_equal(first, second))


def coverage(cond: Cond, x: Tensor, timestep: Tensor) -> float | Tensor | None:
    """Return where a conditioning applies at a noise level.

    1 is everywhere, None nowhere; else weights in 0..1, of the shape of x (B C H W).
    """
    if any(not LIMITED & each.keys() for each in cond):
        return 1.0
    parts = [comfy.samplers.get_area_and_mult(each, x, timestep) for each in cond]
    if not any(parts):
        return None
    if any(part and "default" in each for part, each in zip(parts, cond, strict=True)):
        return 1.0
    weights = torch.zeros_like(x)
    for part in parts:
        if part is not None:
            region, dims = weights, x.ndim - 2
            for i in range(dims if part.area is not None else 0):
                region = region.narrow(i + 2, part.area[dims + i], part.area[i])
            region += part.mult
    return weights.clamp(0, 1)
