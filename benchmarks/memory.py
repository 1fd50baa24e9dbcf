"""Measure the memory of a training: python -m benchmarks.memory --host COMFYUI [--sizes 320x64]

UNets laid out as that of SD1.x with random weights are trained by the pack's own node, without and with
gradient checkpointing, each in a process of its own. The first table has what is resident (and, on a GPU,
allocated) by the host that has drawn a picture, less the weights; by the same with the weights; at most
while they are trained; and afterwards. Activations are those of the losses of one step and their gradient,
as tensors that are alive at once, in the precision that the training has, measured apart, without the node
around it. Exit 1 when a training takes more than 1.15 times base weights, activations and optimizer over
what the host takes.

The first training of a process takes about 100 MiB that no later one takes and none gives back: libraries
that are loaded, and the code that torch makes for backward passes. They belong to no model, and are most of
a small one: without them counted for the host, a UNet of width 64 had a ratio of 1.5 with checkpointing. So
a tiny UNet is trained for a step first, and what is resident then is the host's.

On Linux the C library is told to give freed memory back at once; it would keep some of it otherwise.

Sizes are channels of the first level, a multiple of 32, and the side of the latents. 320x64 is the UNet of
Stable Diffusion 1.5 at 512 x 512 pixels.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.random_training import Pack, Training
from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import ROOT

LIMIT = 1.15
MIB = 2**20
SIZES = ("32x32", "64x16", "64x32")
#: The least that there is, for what the first training of a process takes.
TINY = 32, 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--sizes", nargs="+", type=sizes, default=[sizes(each) for each in SIZES])
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the base's weights")
    parser.add_argument("--measure", choices=("on", "off"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.host = str(find_host(arguments.host))
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return 0
    return report(
        {
            f"{width}x{size}, {setting}": child(arguments, width, size, setting)
            for width, size in arguments.sizes
            for setting in ("off", "on")
        }
    )


def sizes(text: str) -> tuple[int, int]:
    """Return width and size of "64x32"."""
    width, _, size = text.partition("x")
    return int(width), int(size)


def child(arguments: argparse.Namespace, width: int, size: int, setting: str) -> dict[str, float]:
    """Measure in a process of its own, so that nothing of another measurement is resident."""
    command = [sys.executable, "-m", "benchmarks.memory", "--host", arguments.host, "--measure", setting]
    command += [
        "--sizes",
        f"{width}x{size}",
        "--batch",
        str(arguments.batch),
        "--steps",
        str(arguments.steps),
    ]
    command += ["--dtype", arguments.dtype] if arguments.dtype else []
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | returned
    )
    return json.loads(run.stdout.splitlines()[-1])


def report(rows: dict[str, dict[str, float]]) -> int:
    """Print the tables; return 1 where a training takes too much."""
    names = ("host", "base", "training", "after")
    print(
        f"{'MiB: size, checkpointing':<28}" + "".join(f"{name:>10}" for name in names) + f"{'s a step':>10}"
    )
    for setting, row in rows.items():
        for kind in ("resident", "allocated"):
            if f"{kind} base" in row:
                cells = "".join(f"{row[f'{kind} {name}'] / MIB:10.0f}" for name in names)
                print(f"{f'{setting}, {kind}':<28}{cells}{row['seconds']:10.2f}")
    parts = ("weights", "activations", "optimizer")
    print(
        f"\n{'MiB: size, checkpointing':<28}"
        + "".join(f"{name:>13}" for name in parts)
        + f"{'training':>12}{'ratio':>8}"
    )
    worst = 0.0
    for setting, row in rows.items():
        kind = "allocated" if "allocated base" in row else "resident"
        taken = row[f"{kind} training"] - row[f"{kind} host"]
        ratio = taken / sum(row[name] for name in parts)
        worst = max(worst, ratio)
        cells = "".join(f"{row[name] / MIB:13.0f}" for name in parts)
        print(f"{setting:<28}{cells}{taken / MIB:12.0f}{ratio:8.2f}")
    print(f"\nworst ratio {worst:.2f}, limit {LIMIT}: {'passed' if worst <= LIMIT else 'FAILED'}")
    return 0 if worst <= LIMIT else 1


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure a whole training, and then the activations of one step."""
    pack, [size] = Pack(Path(arguments.host)), arguments.sizes
    first = Training.of(pack, *TINY, arguments.batch, arguments.dtype)
    run(first, first.plan("domaingallery", 1), arguments.measure)
    del first
    gc.collect()
    training = Training.of(pack, *size, arguments.batch, arguments.dtype)
    plan, model = training.plan("domaingallery", arguments.steps), training.model
    found = {"weights": float(sum(p.nbytes for p in model.model.diffusion_model.parameters()))}
    draw(model, training.prompts.first, training.latents[:1])
    gc.collect()
    for kind, value in now(model).items():
        found |= {f"{kind} base": value, f"{kind} host": value - found["weights"]}
    if model.load_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.load_device)
    began = time.perf_counter()
    with Peak() as peak:
        run(training, plan, arguments.measure)
    found["seconds"] = (time.perf_counter() - began) / arguments.steps
    found["resident training"] = peak.value
    if model.load_device.type == "cuda":
        found["allocated training"] = float(torch.cuda.max_memory_allocated(model.load_device))
    gc.collect()
    found |= {f"{kind} after": value for kind, value in now(model).items()}
    return found | activations(training, plan, arguments.measure)


def run(training: Training, plan: Any, checkpointing: str) -> None:
    """Train as the node does."""
    options = training.pack["nodes.sockets"].RunOptions(preview_every=0, gradient_checkpointing=checkpointing)
    with torch.inference_mode():
        training.pack["nodes.train.training"].run(
            training.model, training.prompts, training.dataset, plan, None, options=options
        )


def draw(model: Any, prompts: Any, latents: Tensor) -> None:
    """Draw as a user would, so that all that the host takes for it is there."""
    import comfy.sample

    with torch.inference_mode():
        comfy.sample.sample(
            model, torch.randn_like(latents), 2, 3.0, "euler", "normal", prompts.target, prompts.empty,
            latents, seed=0, disable_pbar=True,
        )  # fmt: skip


def activations(training: Training, plan: Any, checkpointing: str) -> dict[str, float]:
    """Return the bytes that the losses of one step and their gradient need, and those of the optimizer."""
    batch = training.pack["domaingallery_core.data.parts"].Batch
    draw = training.pack["domaingallery_core.methods"].draw
    with training.ready(plan, checkpointing) as (denoiser, adapter, [part], device):
        trained = float(sum(p.nbytes for p in adapter.parameters()))
        sources = part.source.latents[: plan.data.batch_size]
        read = batch(part, part.target.latents, sources).to(device)
        noised = draw({"domain": read}, denoiser.process, torch.Generator().manual_seed(0))
        with Live(device) as live:
            terms = plan.method.terms(denoiser, adapter, noised)
            plan.method.total(terms).backward()
    # weights, gradients and two moments; the gradients are part of what the backward pass left alive
    return {"activations": live.most, "optimizer": 3 * trained}


def resident() -> float:
    return float(psutil.Process().memory_info().rss)


def now(model: Any) -> dict[str, float]:
    """Return what is resident, and allocated on a GPU."""
    found = {"resident": resident()}
    if model.load_device.type == "cuda":
        found["allocated"] = float(torch.cuda.memory_allocated(model.load_device))
    return found


class Peak:
    """Watch what is resident, a few hundred times a second."""

    def __enter__(self) -> Peak:
        self.value, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.003):
            self.value = max(self.value, resident())

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


class Live(TorchDispatchMode):
    """Count the bytes of tensors made inside that are alive at once, as a GPU's allocator would."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.alive, self.most = device, 0.0, 0.0
        self._known: set[int] = set()

    def __enter__(self) -> Live:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self.device.type == "cuda":
            self.most = float(torch.cuda.max_memory_allocated(self.device) - self._before)
            return
        super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


if __name__ == "__main__":
    sys.exit(main())
