"""Measure every method on the demo model: python -m benchmarks.methods --host COMFYUI

Prints, for each method in one run, seconds a step, the peak of what is resident beyond the host with its
model, the numbers that are trained and the size of the file. Then seconds for an image of DreamBooth with a
LoRA, without prior preservation, beside those of the host's own Train LoRA on the same layers: with its
defaults, and with the settings that are its best. Exit 1 where ours is more than 0.95 of the host's best at
any batch size. A time is the median of several differences between a long and a short run, taken in turns, so
that other load on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.memory import MIB, Peak, resident
from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import ROOT, load_pack

LIMIT = 0.95
BATCHES = (1, 2, 4)
#: Layers of the paper's LoRA, in the names of the host's UNets.
ATTENTION = re.compile(r".*\battn[12]\.to_([qkv]|out\.0)$")
#: Train LoRA of the host: as it is by default, and what may be its best.
HOSTS = {
    "host, defaults": {},
    "host, bypass": {"bypass_mode": True, "gradient_checkpointing": False, "training_dtype": "fp32"},
    "host, fp32": {"gradient_checkpointing": False, "training_dtype": "fp32"},
    "host, bf16": {"gradient_checkpointing": False},
}
CHOICES: dict[str, dict[str, Any]] = {
    "DreamBooth": {"copies": "float32"},
    "DreamBooth LoRA": {},
    "DomainStudio": {
        "variant": "published", "image_similarity_weight": 100.0, "frequency_similarity_weight": 100.0,
        "frequency_weight": 0.1, "style_weight": 1.0,
    },
    "Textual Inversion": {"word": "", "vectors": 1, "templates": "object"},
}  # fmt: skip


class Bench:
    """Train on the demo model, with random images."""

    def __init__(self, host: Path) -> None:
        self.host, pack = host, load_pack(host)
        import comfy.utils
        import comfy_extras.nodes_train

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.stock = comfy_extras.nodes_train
        self.nodes: Callable[[str], Any] = lambda name: sys.modules[f"{pack.__name__}.{name}"]
        self.sockets = self.nodes("nodes.sockets")
        examples = self.nodes("domaingallery_core.data.examples").Examples
        with torch.inference_mode():
            self.model, self.clip, vae = self.nodes("nodes.demo.sketchbook").load_sketchbook()
            words = self.nodes("nodes.data.prompts").DomainGalleryPrompts
            self.prompts = words.execute(self.clip, "sks", "face").result[0]
            self.latents = torch.randn(24, 24, 16, 16, generator=torch.Generator().manual_seed(0))
        part = self.sockets.LatentPart(source=examples(self.latents[10:]), target=examples(self.latents[:10]))
        self.dataset = self.sockets.LatentDataset((part,), vae)

    def train(self, method: str, steps: int, *, batch: int = 4, prior: float = 1.0, rank: int = 4) -> Any:
        """Run Train Baseline, or Train Domain LoRA for "DomainGallery"."""
        given: dict[str, Any] = {"steps": steps, "learning_rate": 1e-4}
        shared: dict[str, Any] = {
            "model": self.model, "prompts": self.prompts, "dataset": self.dataset, "seed": 0,
            "options": self.sockets.TrainingOptions(batch_size=batch, rank=rank, alpha=float(rank)),
        }  # fmt: skip
        with torch.inference_mode():
            if method == "DomainGallery":
                node = self.nodes("nodes.train.training").DomainGalleryTrain
                return node.execute(**shared, **given).result[0]
            chosen = {"method": method, **given, **CHOICES[method]}
            if method == "Textual Inversion":
                chosen["clip"] = self.clip
            else:
                chosen["prior_weight"] = prior
            found = self.nodes("nodes.train.baseline").DomainGalleryBaseline.execute(**shared, method=chosen)
        return found.result[4 if method == "Textual Inversion" else 0]

    def stock_train(self, steps: int, batch: int, **settings: Any) -> Any:
        """Run the host's Train LoRA on the layers of the paper's."""
        defaults: dict[str, Any] = {
            "model": self.model, "positive": self.prompts.first.target, "batch_size": batch, "steps": steps,
            "grad_accumulation_steps": 1, "learning_rate": 1e-4, "rank": 4, "optimizer": "AdamW",
            "loss_function": "MSE", "seed": 0, "training_dtype": "bf16", "lora_dtype": "fp32",
            "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True,
            "checkpoint_depth": 1, "offloading": False, "existing_lora": "[None]", "bucket_mode": False,
            "bypass_mode": False, "latents": {"samples": self.latents[:10]},
        }  # fmt: skip
        values = {name: [value] for name, value in (defaults | settings).items()}
        with torch.inference_mode(), same_layers(self.stock):
            return self.stock.TrainLoraNode.execute(**values).result[0]


@contextmanager
def same_layers(stock: Any) -> Iterator[None]:
    """Let the host's node put adapters on the layers of the paper's LoRA alone, and on no bias."""
    names = ("_setup_lora_adapters", "_setup_lora_adapters_bypass")
    originals = {name: getattr(stock, name) for name in names}

    def limited(setup: Callable[..., Any]) -> Callable[..., Any]:
        def run(patcher: Any, *given: Any) -> Any:
            chosen = [
                (name, SimpleNamespace(weight_function=[], weight=module.weight, bias=None))
                for name, module in patcher.model.named_modules()
                if ATTENTION.match(name)
            ]
            model = SimpleNamespace(named_modules=lambda: chosen)
            return setup(SimpleNamespace(model=model, add_weight_wrapper=patcher.add_weight_wrapper), *given)

        return run

    try:
        for name, original in originals.items():
            setattr(stock, name, limited(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(stock, name, original)


def seconds(run: Callable[[int], Any], long: int) -> float:
    """Return seconds a step: a run of `long` + 2 steps less one of 2."""
    times = []
    for steps in (2, long + 2):
        began = time.perf_counter()
        run(steps)
        times.append(time.perf_counter() - began)
    return (times[1] - times[0]) / long


def table(bench: Bench, long: int, repeats: int) -> None:
    """Print what each method takes."""
    columns = ("s a step", "peak MiB", "trained", "file MiB")
    print(f"{'':<20}" + "".join(f"{name:>12}" for name in columns))
    methods = ("DomainGallery", *CHOICES)
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(repeats):
        for method in methods:
            times[method].append(seconds(lambda steps, method=method: bench.train(method, steps), long))
    for method in methods:
        result = bench.train(method, 2)
        trained = sum(tensor.numel() for name, tensor in result.items() if not name.endswith("alpha"))
        cells = f"{median(times[method]):12.3f}{child(method, bench.host) / MIB:12.0f}{trained:12,}"
        print(f"{method:<20}{cells}{file_size(bench, result) / MIB:12.3f}", flush=True)


def child(method: str, host: Path) -> float:
    """Measure the peak of a method in a process of its own, where nothing of another is resident."""
    command = [sys.executable, "-m", "benchmarks.methods", "--host", str(host), "--peak-of", method]
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | returned
    )
    return float(run.stdout.splitlines()[-1])


def peak_of(bench: Bench, method: str) -> float:
    """Return what a training takes at most beyond a host that has trained before; on a GPU, of its memory."""
    bench.train(method, 1)  # what is imported for it stays
    gc.collect()
    device = bench.model.load_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        bench.train(method, 2)
        return float(torch.cuda.max_memory_allocated(device) - before)
    before = resident()
    with Peak() as peak:
        bench.train(method, 2)
    return peak.value - before


def file_size(bench: Bench, result: Any) -> int:
    """Return the bytes of the file that the pack writes."""
    saving = bench.nodes("nodes.files.saving")
    if isinstance(result, bench.sockets.TrainedEmbedding):
        path = saving.DomainGallerySaveEmbedding.execute(result, "bench").result[1]
    else:
        path = saving.DomainGallerySaveLora.execute(result, "bench", "comfyui").result[0]
    return Path(path).stat().st_size


def beside_the_host(bench: Bench, long: int, repeats: int) -> float:
    """Print seconds for an image of ours and of the host's; return the worst ratio to the host's best."""
    print(f"\n{'s an image':<20}" + "".join(f"{f'batch {batch}':>12}" for batch in BATCHES))
    rows: dict[str, list[float]] = {"ours": [], **{name: [] for name in HOSTS}}
    for batch in BATCHES:
        ways: dict[str, Callable[[int], Any]] = {
            "ours": lambda steps, batch=batch: bench.train("DreamBooth LoRA", steps, batch=batch, prior=0.0)
        }
        for name, settings in HOSTS.items():
            ways[name] = lambda steps, batch=batch, settings=settings: bench.stock_train(
                steps, batch, **settings
            )
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, run in ways.items():
                times[name].append(seconds(run, long) / batch)
        for name, values in times.items():
            rows[name].append(median(values))
    for name, values in rows.items():
        print(f"{name:<20}" + "".join(f"{value:12.4f}" for value in values))
    best = [min(rows[name][i] for name in HOSTS) for i in range(len(BATCHES))]
    ratios = [ours / theirs for ours, theirs in zip(rows["ours"], best, strict=True)]
    print(f"{'ours / host, best':<20}" + "".join(f"{ratio:12.2f}" for ratio in ratios))
    return max(ratios)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.methods", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bench = Bench(find_host(arguments.host))
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        if arguments.peak_of:
            print(peak_of(bench, arguments.peak_of))
            return 0
        table(bench, arguments.steps, arguments.repeats)
        worst = beside_the_host(bench, arguments.steps, arguments.repeats)
    print(f"\nworst ratio {worst:.2f}, limit {LIMIT}: {'passed' if worst <= LIMIT else 'FAILED'}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
