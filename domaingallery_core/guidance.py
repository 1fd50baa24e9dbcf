"""Classifier-free guidance and attribute enhancement (Eq. 6) on x0 predictions of any shape.

Eq. 6 is linear, so it reads the same in x0, epsilon, v or velocity.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Mode = Literal["none", "V-uncond", "VN-N"]
MODES: tuple[str, ...] = get_args(Mode)


def guide(uncond: Tensor, target: Tensor, *, guidance_scale: float) -> Tensor:
    """Return classifier-free guidance, u + s (t - u)."""
    return uncond + guidance_scale * (target - uncond)


def enhanced_target(
    uncond: Tensor, target: Tensor, base: Tensor | None, *, enhancement: float, mode: str
) -> Tensor:
    """Return the shifted conditional prediction t' with which u + s (t' - u) is Eq. 6.

    Args:
        base: the prediction for "[V]" ("V-uncond") or "a [N]" ("VN-N"); None for "none".
        enhancement: lambda_2 of the paper.
    """
    if mode == "none":
        return target
    if base is None:
        raise ValueError(f"Expected a base prediction for the mode {mode!r}, got None.")
    if mode == "V-uncond":
        return target + enhancement * (base - uncond)
    if mode == "VN-N":
        return target + enhancement * (target - base)
    raise ValueError(f"Expected a mode among {MODES!r}, got {mode!r}.")


def enhance(
    uncond: Tensor,
    target: Tensor,
    base: Tensor | None,
    *,
    guidance_scale: float,
    enhancement: float,
    mode: str,
) -> Tensor:
    """Return Eq. 6 for lambda_1 = guidance_scale and lambda_2 = enhancement."""
    shifted = enhanced_target(uncond, target, base, enhancement=enhancement, mode=mode)
    return guide(uncond, shifted, guidance_scale=guidance_scale)
