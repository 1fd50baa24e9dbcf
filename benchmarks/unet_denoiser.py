"""The host's `UNetModel` alone, behind the core's denoiser: no loader, no model management."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from domaingallery_core.model.denoiser import Condition
from domaingallery_core.model.process import Process, broadcast
from domaingallery_core.trainables.fused import COMPUTES


def find_host(given: str | None = None) -> Path:
    """Return the folder of the host from an argument or COMFYUI_PATH.

    Raises:
        SystemExit: neither names a folder with the host in it.
    """
    path = given or os.environ.get("COMFYUI_PATH", "")
    if not path or not (Path(path) / "comfy" / "ldm").is_dir():
        raise SystemExit(f"Expected the folder of ComfyUI in --host or COMFYUI_PATH, got {path!r}.")
    return Path(path).resolve()


def enter_host_on_cpu(host: Path) -> None:
    """Put the host on the path, told to use the CPU."""
    if str(host) not in sys.path:
        sys.path.insert(0, str(host))
    from comfy.cli_args import args

    args.cpu = True


def host_unet(
    host: Path, config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype
) -> nn.Module:
    """Build the host's UNet from its keyword arguments and state dict; an empty one leaves it as made."""
    enter_host_on_cpu(host)
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    COMPUTES[comfy.ops.disable_weight_init.Linear] = COMPUTES[nn.Linear]  # nothing is cast here
    lists = {name: list(value) if isinstance(value, list) else value for name, value in config.items()}
    unet = UNetModel(**lists, dtype=dtype, device="cpu", operations=comfy.ops.disable_weight_init)
    if weights:
        unet.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()})
    return unet.eval().requires_grad_(False)


class _DownPathDone(Exception):
    """Leave the forward pass once the last skip tensor is there."""


class UNetDenoiser:
    """Predict x0 with an epsilon or v model given in its own, variance-preserving terms."""

    def __init__(self, unet: nn.Module, process: Process) -> None:
        self.unet = unet
        self.process = process

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return x0 (B C H W)."""
        s = broadcast(sigma, x)
        out = self._forward(x, sigma, condition, {})
        if self.process.kind == "v":
            return x / (1 + s**2) - out * s / (1 + s**2).sqrt()
        return x - out * s

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        """Return the skip tensors of the down path, each B C H W, without running the rest."""
        found: list[Tensor] = []
        count = len(self.unet.input_blocks)

        def keep(h: Tensor, _options: dict[str, Any]) -> Tensor:
            found.append(h)
            if len(found) == count:
                raise _DownPathDone
            return h

        try:
            self._forward(x, sigma, condition, {"patches": {"input_block_patch": [keep]}})
        except _DownPathDone:
            return found
        raise RuntimeError(f"Expected {count} skip tensors from the UNet, got {len(found)}.")

    def _forward(self, x: Tensor, sigma: Tensor, condition: Condition, options: dict[str, Any]) -> Tensor:
        scaled = x / broadcast(1 + sigma**2, x).sqrt()
        context = condition.tensors["context"].to(x.dtype)
        timesteps = self.process.timestep(sigma)
        return self.unet(scaled, timesteps, context, transformer_options=options)
