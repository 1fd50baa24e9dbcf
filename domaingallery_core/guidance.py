"""Classifier-free guidance and attribute enhancement (Eq. 6) on x0 predictions of any shape.

Eq. 6 is linear, so it reads the same in x0, epsilon, v or velocity.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Mode = Literal["none", "V-uncond", "VN-N"]
MODES: tuple[str, ...] = get_args(Mode)


def guide(uncond: Tensor, target: Tensor, *, guidance_scale: float) -> Tensor:
    """Return classifier-free guidance, u + s (t - u)."""
    return uncond + guidance_scale * (target - uncond)


def direction(uncond: Tensor | None, target: Tensor | None, base: Tensor | None, *, mode: str) -> Tensor:
    """Return what Eq. 6 adds for lambda_1 = lambda_2 = 1.

    Args:
        uncond: read by "V-uncond", which is b - u.
        target: read by "VN-N", which is t - b.
        base: the prediction for "[V]" ("V-uncond") or "a [N]" ("VN-N").

    Raises:
        ValueError: the mode enhances nothing, or a prediction that it reads is None.
    """
    if mode not in ("V-uncond", "VN-N"):
        raise ValueError(f"Expected the mode V-uncond or VN-N, got {mode!r}.")
    minuend, subtrahend = (base, uncond) if mode == "V-uncond" else (target, base)
    if minuend is None or subtrahend is None:
        raise ValueError(f"Expected a base prediction and what {mode!r} compares it with, got None.")
    return minuend - subtrahend


def enhance(
    uncond: Tensor,
    target: Tensor,
    base: Tensor | None,
    *,
    guidance_scale: float,
    enhancement: float,
    mode: str,
) -> Tensor:
    """Return Eq. 6 for lambda_1 = guidance_scale and lambda_2 = enhancement.

    Args:
        base: None for the mode "none".
    """
    guided = guide(uncond, target, guidance_scale=guidance_scale)
    if mode == "none":
        return guided
    term = direction(uncond, target, base, mode=mode)
    return add_enhancement(guided, term, guidance_scale=guidance_scale, enhancement=enhancement)


def add_enhancement(
    guided: Tensor, term: Tensor, *, guidance_scale: float, enhancement: float | Tensor
) -> Tensor:
    """Return the last summand of Eq. 6 on top of any guidance, lambda_1 lambda_2 times a `direction`.

    Args:
        enhancement: a number, or one for each element where it differs over the picture.
    """
    return guided + guidance_scale * enhancement * term


def rescale(guided: Tensor, target: Tensor, *, amount: float) -> Tensor:
    """Return a guided prediction with its contrast moved towards that of the target.

    The standard deviation of each sample is that of `guided` for an amount of 0 and that of `target` for 1
    (Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, section 3.4, in x0).
    """
    axes = list(range(1, guided.ndim))
    tiny = torch.finfo(guided.dtype).tiny
    ratio = target.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(tiny)
    return guided * (amount * ratio + (1 - amount))
