"""What files of LoRAs call the layers of a MODEL: the host's own lists, with the names that peft writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_base import BaseModel
from torch import Tensor

from ....domaingallery_core.files.layers import LayerNames, Place, Rows

DIFFUSION_MODEL, WEIGHT = "diffusion_model.", ".weight"
UNET, TRANSFORMER, PEFT = "unet.", "transformer.", "base_model.model."


def key_map(base: BaseModel) -> dict[str, Any]:
    """Return what the host's loaders know: name in a file -> weight, or weight, part of it and a change."""
    return comfy.lora.model_lora_keys_unet(base, {})


def layer_names(base: BaseModel, kohya: Mapping[str, str]) -> LayerNames:
    """Return what files call the layers of a model; `kohya` has module -> name in kohya's files."""
    sizes = {
        name[len(DIFFUSION_MODEL) : -len(WEIGHT)]: tensor.shape[0]
        for name, tensor in base.state_dict().items()
        if name.startswith(DIFFUSION_MODEL) and name.endswith(WEIGHT) and tensor.ndim > 0
    }
    places = {}
    for name, to in key_map(base).items():
        if (place := _place(to, sizes)) is not None:
            places[name] = place
    of_diffusers = _of_diffusers(base, places, sizes)
    for name, place in of_diffusers.items():
        bare = name.removeprefix(UNET).removeprefix(TRANSFORMER)
        for also in (name, bare, PEFT + bare):
            places.setdefault(also, place)
    last = -1 if isinstance(base, comfy.model_base.Flux2) else 0  # its own names come after those of Flux
    return LayerNames(kohya, _written(of_diffusers, last), places)


def _place(to: Any, sizes: Mapping[str, int]) -> Place | None:
    """Return where a name of the host's list leads; None where that is no weight of the network."""
    key, offset, change = (*((to,) if isinstance(to, str) else to), None, None)[:3]
    module = key.removeprefix(DIFFUSION_MODEL).removesuffix(WEIGHT)
    if not (key.startswith(DIFFUSION_MODEL) and key.endswith(WEIGHT) and module in sizes):
        return None
    outputs, rows = sizes[module], ()
    if offset is not None:
        dimension, first, count = offset
        if dimension != 0 or first + count > outputs:
            return None
        rows = ((first, count),) if count < outputs else ()
    return Place(module, _reordered(outputs, change) if change is not None else rows, outputs)


def _reordered(outputs: int, change: Callable[[Tensor], Tensor]) -> Rows:
    """Return the outputs of a layer in the order of a file, which `change` puts in the order of the model."""
    order = torch.argsort(change(torch.arange(outputs)[:, None])[:, 0]).tolist()
    starts = [i for i in range(outputs) if i == 0 or order[i] != order[i - 1] + 1]
    return tuple((order[i], end - i) for i, end in zip(starts, [*starts[1:], outputs], strict=True))


def _of_diffusers(base: BaseModel, places: Mapping[str, Place], sizes: Mapping[str, int]) -> dict[str, Place]:
    """Return the names of diffusers' layers, in the order of the host's lists."""
    unet = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
    if unet:
        # Sorted, as the list has no order of its own, and two names for the size that SDXL reads.
        to = {name: _place(DIFFUSION_MODEL + key, sizes) for name, key in sorted(unet.items())}
        return {UNET + name.removesuffix(WEIGHT): place for name, place in to.items() if place is not None}
    # For these two the names after the prefix are those of another family, and of another program.
    z_image = isinstance(base.model_config, comfy.supported_models.ZImage)
    if isinstance(base, comfy.model_base.HunyuanVideo) or (
        isinstance(base, comfy.model_base.Lumina2) and not z_image
    ):
        return {}
    found = {name: place for name, place in places.items() if name.startswith(TRANSFORMER)}
    if isinstance(base, comfy.model_base.Flux2):  # which the host's list takes for Flux here
        return {name.replace("time_text_embed", "time_guidance_embed"): to for name, to in found.items()}
    return found


def _written(names: Mapping[str, Place], choice: int) -> dict[str, tuple[str, ...]]:
    """Return module -> its names in a file: those of the layers that make it up, else one for all of it."""
    by_module: dict[str, dict[Rows, list[str]]] = {}
    for name, place in names.items():
        by_module.setdefault(place.module, {}).setdefault(place.rows, []).append(name)
    found = {}
    for module, named in by_module.items():
        outputs = names[next(iter(named.values()))[0]].outputs
        pieces = sorted(rows for rows in named if len(rows) == 1)
        ends = [first + count for ((first, count),) in pieces]
        if pieces and [first for ((first, _),) in pieces] == [0, *ends[:-1]] and ends[-1] == outputs:
            found[module] = tuple(named[rows][choice] for rows in pieces)
        elif whole := [rows for rows in named if sum(count for _, count in rows) in (0, outputs)]:
            found[module] = (named[whole[0]][choice],)
    return found
