"""Blocks of a MODEL whose weights stay in system memory while it is trained, for want of room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ....domaingallery_core.memory.moving import Mover
from ....domaingallery_core.trainables.trainable import Trainable
from ..families import family_of


def at_home(model: ModelPatcher, setting: str, rows: Sequence[int]) -> list[nn.Module]:
    """Return the blocks whose weights stay in system memory.

    "on" is for all of them, "automatic" for as few as there is no room for, spread over the network.

    Args:
        rows: the shape (B C H W) of the latents that are evaluated at once.
    """
    network, management = model.model.diffusion_model, comfy.model_management
    blocks = family_of(model).blocks(network)
    if setting != "automatic":
        return blocks if setting == "on" else []
    device = model.load_device
    if management.is_device_cpu(device):
        return []
    if management.vram_state == management.VRAMState.NO_VRAM:
        return blocks
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in blocks]
    known = [m for m in management.current_loaded_models if m.model is not None]  # a clone may be gone
    held = sum(m.model_loaded_memory() for m in known if m.device == device)
    beside = management.minimum_inference_memory() + model.memory_required(list(rows))
    room = management.get_free_memory(device) + held - beside
    return [blocks[number] for number in spread(sizes, model.model_size() - room)]


def spread(sizes: Sequence[int], missing: float) -> list[int]:
    """Return the numbers of the fewest blocks at even distances that make room for what is missing.

    Two blocks are on the device at once while they are moved: that room is missing, too.
    """
    if missing <= 0 or not sizes:
        return []
    missing += 2 * max(sizes)
    for count in range(1, len(sizes) + 1):
        chosen = [number * len(sizes) // count for number in range(count)]
        if sum(sizes[number] for number in chosen) >= missing:
            return chosen
    return list(range(len(sizes)))


@contextmanager
def pinned(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Return a context in which weights in system memory are pinned, as far as the host does that."""
    management, found = comfy.model_management, []
    try:
        for weight in weights:
            if not management.pin_memory(weight):
                break
            found.append(weight)
        yield
    finally:
        for weight in found:
            management.unpin_memory(weight)


@contextmanager
def moved(home: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Return a context in which the weights of blocks come to a device while these are computed with."""
    if not home:
        yield
        return
    mover = Mover(home, device)
    with pinned(mover.weights()), mover.in_place():
        yield


def bring(trainable: Trainable, device: torch.device) -> None:
    """Move what learns to a device: it was made beside the weights that it is for."""
    for parameter in trainable.named_parameters().values():
        parameter.data = parameter.data.to(device)
