"""The mean-squared terms of the method (Eq. 1, 2, 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.process import Process, broadcast


def mean_squared_error(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over all elements, in at least float32."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, wanted.dtype), torch.float32)
    return torch.nn.functional.mse_loss(prediction.to(dtype), wanted.to(dtype))


def reconstruction(
    prediction: Tensor, wanted: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return Eq. 1, the terms "target" and "prior": regress on what the family predicts (B C H W).

    Args:
        mask: B 1 H W in 0..1; the mean over all elements is weighed by it.
        weight: B; the error of each image is scaled by it.
    """
    if mask is None and weight is None:
        return mean_squared_error(prediction, wanted)
    difference = (prediction - wanted).to(torch.promote_types(prediction.dtype, torch.float32))
    square = difference**2 if weight is None else broadcast(weight, difference) * difference**2
    if mask is None:
        return square.mean()
    mask = mask.to(difference).expand_as(difference)
    return (mask * square).sum() / mask.sum().clamp_min(1e-6)


def erasure(source_to_target: Tensor, source: Tensor) -> Tensor:
    """Return Eq. 2: "a [V] [N]" predicts what "a [N]" predicts, both with the adapter on (B C H W)."""
    return mean_squared_error(source_to_target, source.detach())


def disentanglement(source: Tensor, source_base: Tensor) -> Tensor:
    """Return Eq. 3: "a [N]" predicts what the frozen base predicts (B C H W)."""
    return mean_squared_error(source, source_base.detach())


def min_snr_weight(process: Process, timestep: int, gamma: float) -> float:
    """Return the weight of Min-SNR-gamma (arXiv 2303.09556) for what a family regresses on at a timestep.

    It is min(SNR, gamma) for x0; epsilon, v and velocity count as the x0 that they stand for.
    """
    sigma = float(process.sigmas[timestep])
    signal = 1 - sigma if process.kind == "flow" else 1.0
    snr = (signal / max(sigma, 1e-12)) ** 2
    if process.kind == "flow":
        return min(snr, gamma) * sigma**2
    return min(snr, gamma) / (snr + 1 if process.kind == "v" else snr)
