"""What is far from what a family of models takes, in words for the person."""

from __future__ import annotations

import math

from comfy.model_patcher import ModelPatcher

from ...domaingallery_core.run.optimizers import OPTIMIZERS
from .families import family_of

#: Networks of so many weights take about the rate of Stable Diffusion; smaller ones need more.
LARGE = 100_000_000
#: How many times the learning rate that suits a model passes without a word.
FAR = 10
#: Between which parts of the size that suits a model a size passes without a word.
NEAR = (0.6, 1.7)


def far_rate(model: ModelPatcher, method: str, rate: float, optimizer: str = "adamw") -> str:
    """Return what to warn of where a learning rate is far from what suits a method on a MODEL, or "".

    Of a small network that has no numbers of its own nothing is known. An optimizer that has a rate of its
    own has it for networks of any size.
    """
    usual = OPTIMIZERS[optimizer].rate
    if usual is not None:
        if usual / FAR <= rate <= FAR * usual:
            return ""
        what = "a factor" if optimizer == "prodigy" else "a share of the weights"
        return (
            f"The learning rate {rate:g} is far from {usual:g}, which is usual for {optimizer}: it is {what} "
            "there. The LoRA may learn nothing, or nothing but noise."
        )
    family = family_of(model)
    own = family.length(method)[1]
    if not (method in family.lengths or is_large(model)):
        return ""
    whose = f"the {own:g} of {family.name}" if method in family.lengths else f"the paper's {own:g}"
    if rate > FAR * own:
        return (
            f"The learning rate {rate:g} is {rate / own:.0f} times {whose}, which suits models of this size. "
            "The LoRA may draw nothing but noise."
        )
    if 0 < rate * FAR < own:
        return (
            f"The learning rate {rate:g} is {own / rate:.0f} times less than {whose}, which suits models of "
            "this size. The LoRA may learn nothing."
        )
    return ""


def far_size(model: ModelPatcher, width: int, height: int) -> str:
    """Return what to warn of where a size of images is far from what suits a MODEL, or ""."""
    size = family_of(model).drawing.size
    least, most = NEAR
    if least <= math.sqrt(width * height) / size <= most or not is_large(model):
        return ""
    return (
        f"{width} x {height} pixels are far from the {size} x {size} that suit this model: it may draw no "
        "good images. Enter 0 for what suits the model."
    )


def is_large(model: ModelPatcher) -> bool:
    """Tell whether a MODEL has about the size of Stable Diffusion, or more."""
    return sum(p.numel() for p in model.model.diffusion_model.parameters()) >= LARGE
