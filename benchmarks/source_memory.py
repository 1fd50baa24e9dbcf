"""Measure the memory of many source images: python -m benchmarks.source_memory --host COMFYUI [--pack FOLDER]

A real host draws them, encodes them and trains a step: 1000 of 512 x 512 pixels, then 200 of 1024 x 1024. The
UNet and the network of the VAE are small and random, so that the images are what takes the
memory. The peak is that of the host's process from the first drawing to the end of the first step, less what
it takes when it has done the same with four images. With --pack another copy of the pack is measured, such as
an earlier one. Exit 1 above 1.3 GB.

On Linux the C library is told to give freed memory back at once; it would keep some of it otherwise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.unet_denoiser import find_host
from tools.host.process import PACK, HostProcess

LIMIT = 1.3e9
CASES = ((1000, 512), (200, 1024))
NODE = """
import importlib.util

import torch
from comfy.model_patcher import CoreModelPatcher
from comfy.sd import VAE
from comfy_api.v0_0_2 import ComfyExtension, io

spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
tiny.UNET |= {{"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]}}


class Words:
    def tokenize(self, text):
        return {{"l": [[(sum(map(ord, word)), 1.0) for word in text.split()]], "text": text}}

    def encode_from_tokens_scheduled(self, tokens):
        return tiny.conditioning(sum(map(ord, tokens["text"])))


class Patches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Conv2d(4, 192, 1)

    def encode(self, images):
        return self.down(images)

    def decode(self, latents):
        return torch.pixel_shuffle(self.up(latents), 8)


class Small(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        outputs = [io.Model.Output(), io.Clip.Output(), io.Vae.Output()]
        return io.Schema(node_id="TestSmall", category="tests", inputs=[], outputs=outputs)

    @classmethod
    def execute(cls):
        torch.manual_seed(0)
        vae = VAE(sd={{"pixel_space_vae": torch.tensor(1.0)}})
        vae.first_stage_model = Patches()
        vae.patcher = CoreModelPatcher(
            vae.first_stage_model, load_device=vae.device, offload_device=vae.device
        )
        vae.downscale_ratio = vae.upscale_ratio = 8
        vae.latent_channels, vae.vae_dtype = 4, torch.float32
        return io.NodeOutput(tiny.tiny_model(), Words(), vae)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Small]


async def comfy_entrypoint():
    return Extension()
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.source_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--pack", type=Path, default=PACK, help="another copy of the pack")
    arguments = parser.parse_args()
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    worst = 0.0
    for count, size in CASES:
        taken, seconds = measure(find_host(arguments.host), arguments.pack.resolve(), count, size)
        worst = max(worst, taken)
        print(
            f"{count} images of {size} x {size}: {taken / 1e9:.2f} GB above the host, {seconds:.0f} s",
            flush=True,
        )
    print(f"limit {LIMIT / 1e9:.1f} GB: {'passed' if worst <= LIMIT else 'FAILED'}")
    return 0 if worst <= LIMIT else 1


def measure(host: Path, pack: Path, count: int, size: int) -> tuple[float, float]:
    """Return how many bytes a training on so many source images takes at most, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        node = Path(folder, "custom_nodes", "small.py")
        node.parent.mkdir()
        node.write_text(NODE.format(tiny=str(PACK / "tests" / "nodes" / "tiny.py")))
        with HostProcess(host, pack=pack, base_directory=folder, cpu=True) as process:
            process.client.run(training(4, size, seed=10**6), timeout=600)
            process.client.free()
            time.sleep(2)
            before = resident(process.pid)
            began = time.monotonic()
            with Peak(process.pid) as peak:
                process.client.run(training(count, size, seed=0), timeout=3000)
            return peak.value - before, time.monotonic() - began


class Peak:
    """Keep the most memory that a process has, read fifty times a second."""

    def __init__(self, pid: int) -> None:
        self.pid, self.value, self._done = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.value = max(self.value, resident(self.pid))


def resident(pid: int) -> float:
    """Return the bytes of a process and of those that it started."""
    process = psutil.Process(pid)
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True))))


def training(count: int, size: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return a prompt that draws source images of a size, encodes them, and trains a step."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "small": node("TestSmall"),
        "words": node("DomainGalleryPrompts", clip=["small", 1], identifier="sks", category="face"),
        "source": node(
            "DomainGallerySourceImages", model=["small", 0], vae=["small", 2], prompts=["words", 0],
            count=count, width=size, height=size, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
            batch_size=4, seed=seed,
        ),
        "target": node("EmptyImage", width=size, height=size, batch_size=4, color=8421504),
        "dataset": node(
            "DomainGalleryDataset", vae=["small", 2], source_images=["source", 0], target_images=["target", 0]
        ),
        "options": node(
            "DomainGalleryOptions", rank=4, alpha=4.0, batch_size=1, prior_weight=1.0,
            disentanglement_weight=0.0, erasure_weight=10.0, similarity_weight=0.0, denoise_steps=1,
            offset_noise=0.0,
        ),
        "train": node(
            "DomainGalleryTrain", model=["small", 0], prompts=["words", 0], dataset=["dataset", 0], steps=1,
            learning_rate=1e-3, seed=seed, options=["options", 0],
        ),
        "save": node("DomainGallerySaveLora", lora=["train", 0], name="memory", key_format="comfyui"),
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
