"""Kill one of two hosts on one output folder, again and again: python -m benchmarks.two_hosts --host COMFYUI

Both train the same at once, draw the same source images and save under the same name. One is killed at a
random moment. What the other one makes, what the killed one makes when it is started again, and what one host
makes alone must be the same file; every file that was saved must be there and whole; and nothing half-written
may be left. Every second run keeps a checkpoint each few steps. Exit 1 where something is lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.unet_denoiser import find_host
from tools.host.client import Interrupted, PromptError
from tools.host.process import HostError, HostProcess

Prompt = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.two_hosts", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two hosts on few cores would wait for each other's threads
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pair = Pair(find_host(arguments.host), Path(folder), arguments.seed)
        stack.callback(pair.stop)
        for number in range(arguments.kills):
            print(f"kill {number + 1}: {pair.round(number)}", flush=True)
    print(f"{arguments.kills} kills, {pair.gone_on} went on from a checkpoint, lost {pair.lost}")
    return 1 if pair.lost else 0


class Pair:
    """Run two hosts with one output folder.

    Attributes:
        lost: what was not as it must be.
        gone_on: how many runs went on from a checkpoint after a kill.
    """

    def __init__(self, host: Path, folder: Path, seed: int) -> None:
        self.folder, self.host = folder, host
        self.output = folder / "output"
        self.moments = random.Random(seed)
        self.lost = self.gone_on = 0
        self.alone: dict[int, bytes] = {}  # by seed
        self.seconds = 20.0  # of a run of two at once
        self.hosts = [self._start(number) for number in (0, 1)]

    def _start(self, number: int) -> HostProcess:
        arguments = ("--output-directory", str(self.output))
        process = HostProcess(
            self.host, base_directory=self.folder / f"host {number}", cpu=True, arguments=arguments
        )
        process.start()
        return process

    def stop(self) -> None:
        """Stop both hosts."""
        for process in self.hosts:
            process.stop()

    def round(self, number: int) -> str:
        """Train the same in both, kill one, start it again; return what was found, in words."""
        prompt, victim = training(number % 2), self.moments.randint(0, 1)
        before = self._saved()
        results: dict[int, Any] = {}
        for process in self.hosts:
            process.client.free()  # of what it made before
        threads = [threading.Thread(target=self._run, args=(i, prompt, results)) for i in (0, 1)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(self.moments.random() * self.seconds)
        os.kill(self.hosts[victim].pid, signal.SIGKILL)
        after = time.monotonic() - began
        for thread in threads:
            thread.join()
        self.seconds = max(self.seconds, time.monotonic() - began)
        self.hosts[victim].stop()
        self.hosts[victim] = self._start(victim)
        again: dict[int, Any] = {}
        self._run(victim, prompt, again)
        files = [result for result in (results.get(1 - victim), again.get(victim)) if result is not None]
        problems = self._problems(files, before, results.get(victim), number % 2 == 1)
        text = again.get("text", "")
        self.gone_on += "gone on" in text
        self._clear()
        if any(path.read_bytes() != self._alone(number % 2) for path in files):
            problems.append("another file than alone")
        self.lost += len(problems)
        found = "; ".join(problems) or "the same file as alone, twice"
        return f"host {victim} after {after:.1f} s, {'gone on' if 'gone on' in text else 'anew'}: {found}"

    def _alone(self, seed: int) -> bytes:
        """Return the file that one host makes while the other one rests."""
        if seed not in self.alone:
            self.hosts[0].client.free()
            result: dict[int, Any] = {}
            self._run(0, training(seed), result)
            self._clear()
            self.alone[seed] = result[0].read_bytes()
        return self.alone[seed]

    def _run(self, number: int, prompt: Prompt, results: dict[Any, Any]) -> None:
        try:
            outputs = self.hosts[number].client.run(prompt, timeout=300)
        except (HostError, Interrupted, OSError):
            return
        except PromptError as error:
            results["error"] = str(error)
            return
        saved = outputs["save"]["loras"][0]
        results[number] = self.output / saved["subfolder"] / saved["filename"]
        results["text"] = outputs["train"]["text"][0] if "train" in outputs else ""

    def _saved(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (self.output / "loras").rglob("*.safetensors")}

    def _problems(
        self, files: list[Path], before: dict[Path, bytes], killed: Path | None, often: bool
    ) -> list[str]:
        problems = []
        if len(files) < 2:
            problems.append("a run gave no file")
        if len(set(files)) < len(files) or killed in files:
            problems.append("two runs were told of one file")
        now = self._saved()
        if any(now.get(path) != content for path, content in before.items()):
            problems.append("a file of before was overwritten")
        for path in now:
            try:
                with safe_open(path, framework="pt") as file:
                    file.keys()
            except Exception as error:
                problems.append(f"{path.name} does not load: {error}")
        kept = [path for path in self.output.rglob("*") if path.suffix == ".part" or path.name == ".lock"]
        if not often:
            kept += (self.output / "domaingallery" / "checkpoints").rglob("*.safetensors")
        problems += [f"left behind: {path.relative_to(self.output)}" for path in kept]
        return problems

    def _clear(self) -> None:
        shutil.rmtree(self.output / "domaingallery", ignore_errors=True)


def training(seed: int) -> Prompt:
    """Return a prompt that draws source images, trains for some seconds, and saves."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    often = 10 * (seed % 2)
    return {
        "demo": node("DomainGalleryLoadDemo"),
        "words": node("DomainGalleryPrompts", clip=["demo", 1], identifier="sks", category="face"),
        "source": node(
            "DomainGallerySourceImages", model=["demo", 0], vae=["demo", 2], prompts=["words", 0], count=12,
            width=64, height=64, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", batch_size=4,
            seed=1000 * seed,
        ),
        "target": node("DomainGalleryDemoImages", domain="cyanotype", category="face", count=6, seed=0),
        "dataset": node(
            "DomainGalleryDataset", vae=["demo", 2], source_images=["source", 0], target_images=["target", 0]
        ),
        "options": node(
            "DomainGalleryOptions", rank=4, alpha=4.0, batch_size=2, prior_weight=1.0,
            disentanglement_weight=0.0, erasure_weight=10.0, similarity_weight=0.0, denoise_steps=1,
            offset_noise=0.0,
        ),
        "run": node(
            "DomainGalleryRunOptions", preview_every=0, preview_count=1, preview_steps=2, preview_cfg=1.0,
            validate_every=0, checkpoint_every=often, keep=2, resume="automatic", run_name="",
            gradient_checkpointing="off", offload="off",
        ),
        "train": node(
            "DomainGalleryTrain", model=["demo", 0], prompts=["words", 0], dataset=["dataset", 0], steps=40,
            learning_rate=1e-3, seed=seed, options=["options", 0], run_options=["run", 0],
        ),
        "save": node("DomainGallerySaveLora", lora=["train", 0], name="two/hosts", key_format="comfyui"),
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
