"""Measure a sampling step with and without enhancement: python -m benchmarks.sampling --host COMFYUI

Prints, for stock guidance and each mode through each node, the median time of a step, the evaluations of the
model in it, and both over those of stock guidance. The UNet has random weights: that of SD1.x at 512 x 512 on
a GPU, a smaller one of the same layout on a CPU. Each run is compared with one of stock guidance right before
it, and a time ratio is the median of such pairs, so that other load on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_model import random_model
from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import load_pack

STOCK = ("KSampler", "plain guidance")
PROMPTS = ("target", "source", "bare", "empty")
STRENGTHS = {"V-uncond, 0": ("V-uncond", 0.0), "V-uncond": ("V-uncond", 1.0), "VN-N": ("VN-N", 1.0)}


class Bench:
    """Sample with a random MODEL through every way, and keep times and rows of its steps."""

    def __init__(self, host: Path, *, width: int) -> None:
        pack = load_pack(host)
        import comfy.samplers
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.samplers = comfy.samplers
        self.sampling = sys.modules[pack.__name__ + ".nodes.draw.sampling"]
        sockets = sys.modules[pack.__name__ + ".nodes.sockets"]
        with torch.inference_mode():
            self.model = random_model(width)
            encoded = {name: prompt(i) for i, name in enumerate(PROMPTS)}
            category = sockets.CategoryPrompts(identifier="V", category="N", **encoded)
            self.prompts = sockets.DomainPrompts((category,))
        self.device = self.model.load_device
        self.rows: list[int] = []
        self.model.model.diffusion_model.register_forward_pre_hook(
            lambda module, args: self.rows.append(args[0].shape[0])
        )

    def ways(self) -> dict[tuple[str, str], Any]:
        """Return the guider of each node, as KSampler, SamplerCustomAdvanced and Domain KSampler use it."""
        domain, p, nodes = self.prompts, self.prompts.first, self.sampling

        def stock(model: Any) -> Any:
            guider = self.samplers.CFGGuider(model)
            guider.set_conds(p.target, p.empty)
            guider.set_cfg(7.5)
            return guider

        found = {STOCK: stock(self.model)}
        for title, (mode, strength) in STRENGTHS.items():
            enhancement = {"mode": mode, "enhancement": strength, "prompts": domain}
            patched = nodes.DomainGalleryEnhancement.execute(self.model, **enhancement)[0]
            found["Domain Enhancement", title] = stock(patched)
            found["Domain Guider", title] = nodes.DomainGalleryGuider.execute(
                self.model, p.target, p.empty, cfg=7.5, **enhancement
            )[0]
            found["Domain KSampler", title] = nodes.make_guider(
                self.model, p.target, p.empty, domain, mode, 7.5, strength
            )
            if title == "V-uncond":
                other = enhancement | {"mode": "VN-N"}
                twice = nodes.DomainGalleryEnhancement.execute(patched, **other)[0]
                found["Domain Enhancement", "both, chained"] = stock(twice)
        coinciding = {"mode": "VN-N", "enhancement": 1.0, "base": p.empty}
        patched = nodes.DomainGalleryEnhancement.execute(self.model, **coinciding)[0]
        found["Domain Enhancement", "base = negative"] = stock(patched)
        return found

    @torch.inference_mode()
    def step_times(self, guider: Any, batch: int, size: int, steps: int) -> list[float]:
        """Return the seconds of each step but the first, of a run of Domain KSampler's own function."""
        moments: list[float] = []
        self.rows.clear()

        def stamp(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            moments.append(time.perf_counter())

        sigmas = self.sampling.schedule(self.model, steps, "euler", "normal", 1.0)
        latent = {"samples": torch.zeros(batch, 4, size // 8, size // 8)}
        self.sampling.sample(guider, "euler", sigmas, latent, 0, stamp)
        return [after - before for before, after in pairwise(moments)]


def prompt(seed: int) -> list[list[Any]]:
    """Return a random CONDITIONING of 77 tokens."""
    return [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), {}]]


def measure(bench: Bench, batch: int, size: int, steps: int, rounds: int) -> None:
    """Print the table of one batch size."""
    ways = bench.ways()
    plain = 0.0
    for way, guider in ways.items():
        times, ratios = [], []
        for i in range(rounds + 1):
            stock = median(bench.step_times(ways[STOCK], batch, size, steps))
            mine = median(bench.step_times(guider, batch, size, steps))
            if i:  # the first warms up
                times.append(mine)
                ratios.append(mine / stock)
        rows = sum(bench.rows) / steps / batch
        plain = plain or rows
        ratio, more = median(ratios), rows / plain
        node, mode = way
        print(
            f"{batch:5}  {node:18}  {mode:15}  {rows:4.1f}  {median(times) * 1e3:9.1f}"
            f"  {ratio:10.3f}  {more:10.3f}  {ratio / more:9.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument(
        "--batches", type=int, nargs="+", help="images at once; 1 4 16 on a GPU, 1 4 on a CPU"
    )
    parser.add_argument("--size", type=int, help="pixels; 512 on a GPU, 128 on a CPU")
    parser.add_argument("--width", type=int, help="channels of the UNet; 320 on a GPU, 64 on a CPU")
    parser.add_argument("--steps", type=int, default=6, help="in each run")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    size, width = given.size or (512 if gpu else 128), given.width or (320 if gpu else 64)
    bench = Bench(find_host(given.host), width=width)
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    count = sum(weight.numel() for weight in bench.model.model.diffusion_model.parameters())
    print(f"{name}, torch {torch.__version__}; UNet of {count / 1e6:.0f} M, {size} x {size} pixels")
    print("batch  node                mode             rows    ms/step  time ratio  rows ratio  time/rows")
    for batch in given.batches or ([1, 4, 16] if gpu else [1, 4]):
        measure(bench, batch, size, given.steps, given.rounds)


if __name__ == "__main__":
    main()
