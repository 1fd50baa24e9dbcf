"""Similarity consistency (Eq. 4): recurrent denoising, pairwise similarities of features, KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..guidance import guide
from ..model.denoiser import Condition, Denoiser, denoise_together

#: With fewer source images of a category the term compares images with themselves.
FEWEST_SOURCES = 3
SimilarityScale = Literal["released", "paper"]


def recurrent_timesteps(timestep: int, steps: int) -> list[int]:
    """Return the descending timesteps of the recurrent denoising (paper 4.2).

    They go evenly from `timestep` towards 0, which is left out; below `steps`, one by one down to 0.
    """
    if timestep < steps:
        return list(range(timestep, -1, -1))
    return [round(timestep * (steps - k) / steps) for k in range(steps)]


def recurrent_denoise(
    denoiser: Denoiser,
    x: Tensor,
    timestep: int,
    condition: Condition,
    *,
    steps: int,
    guidance: float,
    empty: Condition | None,
    first: Tensor | None = None,
) -> Tensor:
    """Denoise x (B C H W) by a few DDIM steps and return the x0 of the last (paper 4.2).

    Args:
        guidance: other than 1, each prediction is guided away from `empty`.
        first: the (guided) x0 at `timestep` where it is known already.
    """
    timesteps = recurrent_timesteps(timestep, steps)
    process = denoiser.process
    x0 = x
    for k, now in enumerate(timesteps):
        if k == 0 and first is not None:
            found = first
        else:
            sigma = process.sigma(now, x)
            found = guided_denoise(denoiser, x, sigma, condition, guidance=guidance, empty=empty)
        x0, d = process.ddim_prediction(x, found, now)
        if k + 1 < len(timesteps):
            x = process.ddim_noised(x0, d, timesteps[k + 1])
    return x0


def guided_denoise(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    condition: Condition,
    *,
    guidance: float,
    empty: Condition | None,
) -> Tensor:
    """Return x0 (B C H W), with classifier-free guidance where `guidance` is not 1."""
    if guidance == 1.0:
        return denoiser(x, sigma, condition.expand(x.shape[0]))
    if empty is None:
        raise ValueError("Expected the condition of the empty prompt for guidance other than 1, got None.")
    uncond, target = denoise_together(denoiser, [(x, sigma, empty), (x, sigma, condition)])
    return guide(uncond, target, guidance_scale=guidance)


def clean_features(denoiser: Denoiser, x0: Tensor, condition: Condition) -> list[Tensor]:
    """Return the down-path features of clean latents (B C H W) at timestep 0, each B C H W."""
    x, sigma = denoiser.process.clean_input(x0)
    return denoiser.features(x, sigma, condition.expand(x0.shape[0]))


def pairwise_similarities(feature: Tensor) -> Tensor:
    """Return the cosine of each row of a feature (B ...) with each other row, B (B-1)."""
    rows = feature.shape[0]
    flat = feature.flatten(1).to(torch.promote_types(feature.dtype, torch.float32))
    flat = F.normalize(flat, dim=1)
    cosines = flat @ flat.T  # B B
    # Between two of the diagonal are `rows` others. A mask of them would make the host wait for the device.
    return cosines.flatten()[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def similarity_consistency(
    source_to_target: Sequence[Tensor], source: Sequence[Tensor], *, scale: str = "released"
) -> Tensor:
    """Return Eq. 4 over N features (B C H W each) of two batches related alike; no gradient to `source`.

    "paper" is the mean over N and B of KL(p_s->t || p_src). "released" is what the authors' code computes:
    KL(p_src || p_s->t), divided by B-1 as well. With B = 2 both are 0.
    """
    if not source or len(source_to_target) != len(source):
        raise ValueError(f"Expected as many features twice, got {len(source_to_target)} and {len(source)}.")
    if (rows := source[0].shape[0]) < 2:
        raise ValueError(f"Expected features of at least 2 images, got {rows}.")
    pairs = zip(source_to_target, source, strict=True)
    return torch.stack([divergence(moving, fixed.detach(), scale=scale) for moving, fixed in pairs]).mean()


def divergence(moving: Tensor, fixed: Tensor, *, scale: str) -> Tensor:
    """Return how differently the rows of two batches (B ...) are related, as one layer of Eq. 4."""
    rows = moving.shape[0]
    log_p = _log_softmax(pairwise_similarities(moving))
    log_q = _log_softmax(pairwise_similarities(fixed))
    if scale == "paper":
        return (log_p.exp() * (log_p - log_q)).sum() / rows
    return (log_q.exp() * (log_q - log_p)).sum() / (rows * (rows - 1))


def _log_softmax(similarities: Tensor) -> Tensor:
    """Return the log of a softmax over rows, in float64 where there is one: divergences are near 0."""
    dtype = torch.float32 if similarities.device.type == "mps" else torch.float64
    return similarities.to(dtype).log_softmax(dim=1)
