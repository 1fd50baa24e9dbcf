"""Measure a step of training beside its limit: python -m benchmarks.training --host COMFYUI

A UNet laid out as that of SD1.x with random weights is trained by the pack's own loop: both stages, with and
without gradient checkpointing, from a base in float32, bfloat16 and float16. After each step the bare UNet,
without an adapter, evaluates once more what that step asked for, forward, and back as far as the adapter
needs it. This is the limit: what any training on these evaluations takes at least. They take turns, so that
whatever else the machine does falls on both. Exit 1 where the steps of a row take more than 1.05 times that.

Seconds are those of one processor; on a GPU, of the clock, with the device waited for. The memory is the most
that is alive at once in a step, and in these evaluations, besides weights. A base that computes in another
precision than it is stored in (all but float32 on a CPU) is cast for each call, in both.

--released DIR takes a checkout of the authors' code, which needs diffusers, accelerate, transformers and
tensorboard. Its own loop runs stage 2 in turns with this one, on a UNet as large, in float32, with gradient
checkpointing as published; VAE and text encoder are tiny there. Exit 1 where a step here takes more than 0.62
of its time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import MIB, Live
from benchmarks.random_training import Pack, Recorded, Training, bare
from benchmarks.released import Released, run_in_turns
from benchmarks.unet_denoiser import find_host

LIMIT, LIMIT_RELEASED = 1.05, 0.62
STAGES = {"stage 1": "erasure", "stage 2": "domaingallery"}
DTYPES = ("float32", "bfloat16", "float16")
SETTINGS = ("off", "on")


def clock(device: torch.device) -> float:
    """Return seconds of the processor, or on a GPU those that its work takes."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Row:
    """Hold what a stage took in one setting.

    Attributes:
        steps, limits: seconds of each step, and of its evaluations by the bare UNet.
        step_memory, limit_memory: bytes.
    """

    stage: str
    base: str
    checkpointing: str
    steps: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    step_memory: float = 0.0
    limit_memory: float = 0.0

    @property
    def ratio(self) -> float:
        """Return how much longer the steps took."""
        return sum(self.steps) / sum(self.limits)

    def __str__(self) -> str:
        step, limit = (sum(found) / len(found) for found in (self.steps, self.limits))
        memory = f"{self.step_memory / MIB:9.0f}{self.limit_memory / MIB:9.0f}"
        return (
            f"{self.stage:9}{self.base:10}{self.checkpointing:>5}{step:11.3f}{limit:9.3f}{self.ratio:7.3f}"
            f"{memory}{self.step_memory / self.limit_memory:7.2f}"
        )


HEAD = f"{'':9}{'base':10}{'ckpt':>5}{'s a step':>11}{'bare':>9}{'ratio':>7}{'MiB':>9}{'bare':>9}{'ratio':>7}"


def measured(training: Training, row: Row, rounds: int) -> Row:
    """Train for some steps after a first one, and after each evaluate the same by the bare UNet."""
    plan = training.plan(STAGES[row.stage], rounds + 1)
    network = training.model.model.diffusion_model
    with training.ready(plan, row.checkpointing) as (denoiser, adapter, parts, device):
        recorded, began = Recorded(denoiser), 0.0

        def turn(event: Any) -> None:
            nonlocal began
            if event.step == 0:
                return
            took, calls = clock(device) - began, recorded.taken()
            with bare(network):
                began = clock(device)
                recorded.again(calls)
                limit = clock(device) - began
            if event.step > 1:
                row.steps.append(took)
                row.limits.append(limit)
            began = clock(device)

        training.pack["domaingallery_core.run.trainer"].train(recorded, adapter, parts, plan, turn)
        row.step_memory, row.limit_memory = memory(training, plan, recorded, adapter, parts, device)
    return row


def memory(
    training: Training, plan: Any, recorded: Recorded, adapter: Any, parts: list[Any], device: torch.device
) -> tuple[float, float]:
    """Return the most bytes alive in the losses of a step and their gradient, and in the bare evaluations."""
    batch = training.pack["domaingallery_core.data.parts"].Batch
    draw = training.pack["domaingallery_core.methods"].draw
    [part], size = parts, plan.data.batch_size
    images = [None if e is None else e.latents[:size].to(device) for e in (part.target, part.source)]
    noised = draw({"domain": batch(part, *images)}, recorded.process, torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.enable_grad():
        recorded.taken()
        with Live(device) as step:
            plan.method.total(plan.method.terms(recorded, adapter, noised)).backward()
        calls = recorded.taken()
        with bare(training.model.model.diffusion_model), Live(device) as limit:
            recorded.again(calls)
    return step.most, limit.most


def beside_released(
    training: Training, released: Released, rounds: int, settings: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Return seconds of a step here and there, by whether gradient checkpointing is on here."""
    plan = training.plan("domaingallery", rounds + 2)
    train = training.pack["domaingallery_core.run.trainer"].train

    def here(checkpointing: str, pause: Callable[[], None]) -> None:
        with training.ready(plan, checkpointing) as (denoiser, adapter, parts, _):
            train(denoiser, adapter, parts, plan, lambda event: pause() if event.step else None)

    found, now = {}, partial(clock, training.model.load_device)
    for checkpointing in settings:
        ours, theirs = run_in_turns(partial(here, checkpointing), released.run, rounds, now)
        found[checkpointing] = ours, theirs
        print(f"{'stage 2':9}{'float32':10}{checkpointing:>5}{ours:11.3f}{theirs:9.3f}{ours / theirs:7.3f}")
    return found


def main() -> int:
    """Print a row for each setting; return 1 where one is over its limit."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--width", type=int, default=64, help="channels of the first level, a multiple of 32")
    parser.add_argument("--size", type=int, default=32, help="side of the latents")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="steps that count")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=DTYPES, metavar="DTYPE")
    parser.add_argument("--stages", nargs="*", choices=STAGES.values(), default=[*STAGES.values()])
    parser.add_argument("--checkpointing", nargs="*", choices=SETTINGS, default=SETTINGS, metavar="SETTING")
    parser.add_argument("--peft", action="store_true", help="let peft compute its layers")
    parser.add_argument("--released", type=Path, help="a checkout of the authors' code")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pack = Pack(find_host(options.host))
    if options.peft:
        pack["domaingallery_core.trainables.fused"].COMPUTES.clear()
    sizes = options.width, options.size, options.batch
    rows: list[Row] = []
    print(HEAD)
    for dtype in options.dtypes:
        training = Training.of(pack, *sizes, dtype)
        for stage, method in STAGES.items():
            for checkpointing in options.checkpointing if method in options.stages else ():
                rows.append(measured(training, Row(stage, dtype, checkpointing), options.rounds))
                print(rows[-1], flush=True)
    worst = max((row.ratio for row in rows), default=0.0)
    failed = worst > LIMIT
    print(f"\nworst ratio {worst:.3f}, limit {LIMIT}: {'FAILED' if failed else 'passed'}")
    if options.released:
        print(f"\n{'':9}{'base':10}{'ckpt':>5}{'s a step':>11}{'released':>9}{'ratio':>7}")
        training = Training.of(pack, *sizes, "float32")
        with Released.prepared(options.released, *sizes) as released:
            found = beside_released(training, released, options.rounds, options.checkpointing)
        best = min(ours / theirs for ours, theirs in found.values())
        over = best > LIMIT_RELEASED
        print(f"\nbest ratio {best:.3f}, limit {LIMIT_RELEASED}: {'FAILED' if over else 'passed'}")
        failed |= over
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
