"""Measure offloading: python -m benchmarks.offload --host COMFYUI [--width 320 --size 64]

A UNet laid out as that of SD1.x with random weights is trained by the pack's own node: plain; with as few
blocks computed twice as fit into half of what a plain step takes; with all of them; and with the weights
of all blocks in system memory. The table has MiB on the device: weights that stay there, copies of moved
weights that are alive at once, all that is alive in a step at most besides what stays, and their sum;
what the node estimated of a step before it; MiB moved in a step; and its seconds, of processor time on a
CPU. There, the device is system memory too, and what is moved is copied.

Exit 1 when a loss or a LoRA differs by a bit, offloading takes as much as the others, or an estimate of a
step is off by more than a quarter.

With the width 320 and the size 64 it is the UNet of Stable Diffusion 1.5 at 512 x 512 pixels.
"""

from __future__ import annotations

import argparse
import sys
import time
import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import MIB, Live
from benchmarks.random_model import random_model
from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import load_pack

#: How each row is fitted: what Domain Run Options say, and how much is free of what a plain step takes.
ROWS: dict[str, tuple[str, str, float]] = {
    "plain": ("off", "off", 1.0),
    "half": ("automatic", "off", 0.5),
    "checkpointing": ("on", "off", 1.0),
    "offload": ("on", "on", 1.0),
}
#: An estimate of a step may be off by such a share.
OFF = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.offload", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--width", type=int, default=32, help="channels of the first level, a multiple of 32")
    parser.add_argument("--size", type=int, default=16, help="side of the latents")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the base's weights")
    arguments = parser.parse_args()
    pack = load_pack(find_host(arguments.host))
    modules = {name.removeprefix(f"{pack.__name__}."): module for name, module in sys.modules.items()}
    rows: dict[str, Row] = {}
    for name, (checkpointing, offload, share) in ROWS.items():
        free = share * rows["plain"].free if rows else 2.0**50
        rows[name] = Row(modules, arguments, checkpointing, offload, free)
        rows[name].print(name, first=len(rows) == 1)
    return verdict(rows)


def verdict(rows: dict[str, Row]) -> int:
    """Say whether all rows learn the same, and offloading takes the least; return 0 where all is well."""
    plain, others = rows["plain"], [row for name, row in rows.items() if name != "plain"]
    same = all(row.losses == plain.losses and equal(row.lora, plain.lora) for row in others)
    lowest = rows["offload"].peak < min(row.peak for name, row in rows.items() if name != "offload")
    close = all(abs(row.estimate.activations / row.step - 1) <= OFF for row in rows.values())
    for text, passed in (
        ("losses and LoRAs equal, bit for bit", same),
        ("offloading takes the least", lowest),
        (f"estimates within {OFF:.0%}", close),
    ):
        print(f"{text}: {'passed' if passed else 'FAILED'}")
    return 0 if same and lowest and close else 1


class Row:
    """Train once, and note what it takes.

    Attributes:
        stays: bytes of weights that stay on the device.
        at_once: bytes of copies of moved weights that are alive at once, at most.
        moved: bytes that a step moves.
        step: bytes alive in a step at most, besides what stays.
        seconds: of a step.
        free: what has to be free for a step to keep all, in the eyes of the pack.
    """

    def __init__(
        self, modules: dict[str, ModuleType], arguments: argparse.Namespace, checkpointing: str, offload: str,
        free: float,
    ) -> None:  # fmt: skip
        self.alive = self.at_once = self.moved = self.step = 0
        self.seconds, self.estimate = 0.0, None
        self.model = random_model(arguments.width, arguments.dtype and getattr(torch, arguments.dtype))
        network = self.model.model.diffusion_model
        blocks = (
            modules["nodes.host.families"].family_of(self.model).blocks(network) if offload == "on" else []
        )
        home = sum(weight.nbytes for block in blocks for weight in block.parameters())
        self.stays = sum(weight.nbytes for weight in network.parameters()) - home
        mover, fitting = (modules[f"domaingallery_core.memory.{name}"] for name in ("moving", "fitting"))
        management = sys.modules["comfy.model_management"]
        kept = mover.Mover.copied, fitting.Fitting.begin, management.get_free_memory, fitting.WORTH
        try:
            mover.Mover.copied = self._counted(kept[0])
            fitting.Fitting.begin = self._begun(kept[1])
            management.get_free_memory = lambda *_: free
            fitting.WORTH = 1
            options = modules["nodes.sockets"].RunOptions(
                preview_every=0, gradient_checkpointing=checkpointing, offload=offload
            )
            self.lora, self.losses = trained(modules, arguments, self.model, options)
        finally:
            mover.Mover.copied, fitting.Fitting.begin, management.get_free_memory, fitting.WORTH = kept
        assert self.estimate is not None
        self.peak = self.stays + self.step
        self.free = self.estimate.needed / fitting.SHARE

    def _counted(self, copied: Any) -> Any:
        def counted(mover: Any, tensor: Tensor) -> Tensor:
            found = copied(mover, tensor)
            self.moved, self.alive = self.moved + found.nbytes, self.alive + found.nbytes
            self.at_once = max(self.at_once, self.alive)
            weakref.finalize(found.untyped_storage(), self._gone, found.nbytes)
            return found

        return counted

    def _gone(self, size: int) -> None:
        self.alive -= size

    def _begun(self, begin: Any) -> Any:
        """Return what a run begins with: its own trial, and two steps more to look at."""

        def begun(fitting: Any, trial: Any, steps: int) -> None:
            begin(fitting, trial, steps)
            self.estimate, self.moved = fitting.estimate, 0
            device = trial.learning[0].device
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            began = clock()
            trial.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.seconds, moved = clock() - began, self.moved
            with Live(device) as live:
                trial.step()
            self.step, self.moved = int(live.most), moved

        return begun

    def print(self, name: str, *, first: bool) -> None:
        """Print the row of the table, and the head of it before the first."""
        names = ("stays", "at once", "in a step", "sum", "estimate", "moved")
        if first:
            print(f"{'MiB':<16}" + "".join(f"{each:>11}" for each in names) + f"{'twice':>8}{'seconds':>9}")
        estimate: Any = self.estimate
        values = (self.stays, self.at_once, self.step, self.peak, estimate.activations, self.moved)
        cells = "".join(f"{value / MIB:11.1f}" for value in values)
        print(f"{name:<16}{cells}{f'{estimate.again}/{estimate.blocks}':>8}{self.seconds:9.2f}", flush=True)


def trained(
    modules: dict[str, ModuleType], arguments: argparse.Namespace, model: Any, run_options: Any
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Return the LoRA and the losses of a training on random latents."""
    sockets, examples = modules["nodes.sockets"], modules["domaingallery_core.data.examples"].Examples
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2 * arguments.batch, 4, arguments.size, arguments.size, generator=generator)
    images = sockets.LatentPart(source=examples(latents), target=examples(latents[: arguments.batch] * 0.9))
    names = ("target", "source", "bare", "empty")
    prompts = {name: [[torch.randn(1, 77, 768, generator=generator), {}]] for name in names}
    category = sockets.CategoryPrompts(identifier="sks", category="face", **prompts)
    plan = sockets.TrainingOptions(batch_size=arguments.batch).plan("domaingallery", arguments.steps, 1e-3, 0)
    with torch.inference_mode():
        output = modules["nodes.train.training"].run(
            model, sockets.DomainPrompts((category,)), sockets.LatentDataset((images,)), plan, None,
            options=run_options,
        )  # fmt: skip
    return dict(output.result[0]), output.result[1]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Tell whether two LoRAs are the same bytes."""
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


if __name__ == "__main__":
    sys.exit(main())
