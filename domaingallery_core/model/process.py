"""Noising, what each model family predicts, and DDIM, in sigma terms.

`x` lives in sigma space, as in the host: x = x0 + sigma * noise (epsilon, v) or
x = (1 - sigma) * x0 + sigma * noise (flow).
With d = (x - x0) / sigma, d is the epsilon of the first two and the velocity of the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Kind = Literal["epsilon", "v", "flow"]


def broadcast(sigma: Tensor, x: Tensor) -> Tensor:
    """Append dimensions to sigma (B or scalar) until it broadcasts over x, in the device and dtype of x."""
    sigma = sigma.to(device=x.device, dtype=x.dtype)
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim))


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """Know a model family: what it regresses on and its noise levels.

    Attributes:
        kind: "epsilon", "v" or "flow".
        sigmas: (T,) ascending, one per discrete timestep; kept as float64 on the CPU.
    """

    kind: Kind
    sigmas: Tensor

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Expected a kind of process among {get_args(Kind)}, got {self.kind!r}.")
        if self.sigmas.ndim != 1 or len(self.sigmas) < 2:
            raise ValueError(f"Expected sigmas of shape (T,), got {tuple(self.sigmas.shape)!r}.")
        sigmas = self.sigmas.detach().to(device="cpu", dtype=torch.float64)
        if bool((sigmas.diff() <= 0).any()) or float(sigmas[0]) < 0:
            raise ValueError("Expected sigmas in ascending order from a value of at least 0.")
        object.__setattr__(self, "sigmas", sigmas)

    @classmethod
    def scaled_linear(
        cls, kind: Kind, *, beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000
    ) -> Process:
        """Build the schedule of Stable Diffusion: betas linear in their square root.

        The betas and abar are rounded to float32 as in the released code, whose results
        show it in the eighth digit. torch.linspace would do, but rounds differently on different machines.
        """
        first, last = np.float32(beta_start**0.5), np.float32(beta_end**0.5)
        step = float((last - first) / np.float32(timesteps - 1))
        k = np.arange(timesteps)
        up, down = float(first) + step * k, float(last) - step * (timesteps - 1 - k)
        roots = np.where(k < timesteps / 2, up, down).astype(np.float32)
        alphas = np.float32(1) - roots * roots
        abar = torch.from_numpy(np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64))
        return cls(kind, ((1 - abar) / abar).sqrt())

    def __len__(self) -> int:
        return len(self.sigmas)

    def sigma(self, timestep: int | Tensor, x: Tensor) -> Tensor:
        """Return the noise level of a discrete timestep, or of one (B) for each row of x, shape (B,)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(timestep, Tensor):
            return self.sigmas[timestep.cpu()].to(device=x.device, dtype=dtype)
        return torch.full((x.shape[0],), float(self.sigmas[timestep]), device=x.device, dtype=dtype)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the discrete timestep nearest in log sigma, shape of sigma, int64 on the device of sigma."""
        logs = self.sigmas.clamp_min(1e-12).log()
        wanted = sigma.detach().to(device="cpu", dtype=torch.float64).clamp_min(1e-12).log()
        return (wanted[..., None] - logs).abs().argmin(-1).to(sigma.device)

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return x at sigma."""
        s = broadcast(sigma, x0)
        return (1 - s) * x0 + s * noise if self.kind == "flow" else x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return what the family regresses on for x noised from x0: noise, v or velocity."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "flow":
            return noise - x0
        s = broadcast(sigma, x0)
        return (noise - s * x0) / (1 + s**2).sqrt()

    def prediction(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Return the family's own prediction at x from the x0 that it stands for; `target` on the true x0."""
        s = broadcast(sigma, x)
        d = (x - x0) / s
        return (d - s * x0) / (1 + s**2).sqrt() if self.kind == "v" else d

    def ddim_prediction(self, x: Tensor, x0: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """Return (x0, d) as DDIM uses them at a discrete timestep; x (B C H W) is x0 + sigma * d.

        As in the released code, the coefficients of epsilon and v models are float32: x0 moves by some 1e-7.
        """
        if self.kind == "flow":
            return x0, (x - x0) / float(self.sigmas[timestep])
        alpha, root_abar, root_rest = self._ddim_coefficients(timestep)
        out = self.prediction(x, x0, self.sigma(timestep, x))
        scaled = x * alpha
        if self.kind == "v":
            return root_abar * scaled - root_rest * out, root_abar * out + root_rest * scaled
        return (scaled - root_rest * out) / root_abar, out

    def ddim_noised(self, x0: Tensor, d: Tensor, timestep: int) -> Tensor:
        """Return x at a discrete timestep from what `ddim_prediction` returned."""
        if self.kind == "flow":
            return x0 + float(self.sigmas[timestep]) * d
        alpha, root_abar, root_rest = self._ddim_coefficients(timestep)
        return x0 * (root_abar / alpha) + d * (root_rest / alpha)

    def _ddim_coefficients(self, timestep: int) -> tuple[float, float, float]:
        """Return 1 / sqrt(1 + sigma^2), and the float32 roots of abar and 1 - abar."""
        square = 1 / (1 + float(self.sigmas[timestep]) ** 2)
        abar = np.float32(square)
        rest = np.float32(1) - abar
        return math.sqrt(square), float(np.float32(math.sqrt(abar))), float(np.float32(math.sqrt(rest)))

    def clean_input(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, sigma) with which the network sees x0 itself at timestep 0."""
        sigma = self.sigma(0, x0)
        return (x0 if self.kind == "flow" else x0 * broadcast(1 + sigma**2, x0).sqrt()), sigma
