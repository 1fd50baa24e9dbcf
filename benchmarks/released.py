"""The authors' own training program, from a checkout, a step at a time."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

#: What runs, and calls what it is given after each step.
Program = Callable[[Callable[[], None]], None]


class _Stopped(BaseException):
    """Raised in a program that is not to go on."""


class InTurns:
    """Run a program in a thread of its own, from one of its steps to the next."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Go on to the end of the next step; what the program raises is raised here."""
        self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the program where it stands."""
        self._done = True
        self._go.release()
        self._thread.join()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._done:
            raise _Stopped

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._done:
                self._program(self._pause)
        except _Stopped:
            return
        except BaseException as error:
            self._error = error
        self._paused.release()


def run_in_turns(
    ours: Program, theirs: Program, rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of a step of each of two programs; the first step does not count."""
    programs, seconds = [InTurns(ours), InTurns(theirs)], [0.0, 0.0]
    try:
        for number in range(rounds + 1):
            for which, program in enumerate(programs):
                began = clock()
                program.step()
                if number:
                    seconds[which] += clock() - began
    finally:
        for program in programs:
            program.close()
    return seconds[0] / rounds, seconds[1] / rounds


@dataclass(frozen=True, slots=True)
class Released:
    """Stage 2 of the released code on a random model as large as that here.

    Attributes:
        program: its module.
        arguments: those of its script, but for what belongs to a GPU or is looked at only.
    """

    program: Any
    arguments: list[str]

    @classmethod
    @contextmanager
    def prepared(cls, checkout: Path, width: int, size: int, batch: int) -> Iterator[Released]:
        """Write a model and images for the program into a folder that is removed at the end.

        Raises:
            SystemExit: it is no checkout of it, or cannot be imported.
        """
        file = checkout / "train_domaingallery.py"
        if not file.is_file():
            raise SystemExit(
                f"Expected a checkout of the released code in --released, got {str(checkout)!r}."
            )
        with tempfile.TemporaryDirectory() as folder, _on_path(checkout.resolve()):
            try:
                program = importlib.import_module(file.stem)
            except ImportError as error:
                raise SystemExit(
                    f"Expected what the released code needs, got: {error}. Install it."
                ) from error
            _checkpointing_of_diffusers(program.UNet2DConditionModel)
            root = Path(folder)
            write_model(root / "model", width)
            for kind in ("target", "source"):
                write_images(root / kind, 2 * batch, 8 * size)
            arguments = {
                "seed": 0, "mode": "finetuning", "output_dir": root / "out",
                "pretrained_model_name_or_path": root / "model",
                "target_data_dir": root / "target", "target_prompt": "a sks face",
                "source_data_dir": root / "source", "source_prompt": "a face",
                "num_source_images": 2 * batch, "resolution": 8 * size, "train_batch_size": batch,
                "max_train_steps": 1000, "learning_rate": 5e-5, "lr_warmup_steps": 0,
                "checkpointing_steps": 10_000, "offset_noise_scale": 0.1,
            }  # fmt: skip
            given = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
            yield cls(program, [*given, "--gradient_checkpointing"])

    def run(self, pause: Callable[[], None]) -> None:
        """Run the program's own loop, with a pause where it counts a step."""

        class Bar:
            def __init__(self, *_: Any, **__: Any) -> None: ...
            def update(self, _count: int = 1) -> None:
                pause()

            def set_postfix(self, **_: Any) -> None: ...

        own, self.program.tqdm = self.program.tqdm, Bar
        try:
            arguments = self.program.parse_args(self.arguments)
            arguments.validation_prompt = None  # no pictures, which are no part of a step
            self.program.main(arguments)
        finally:
            self.program.tqdm = own


def _checkpointing_of_diffusers(unet: type) -> None:
    """Let a UNet be switched to gradient checkpointing by a newer diffusers than it was written for."""
    own = vars(unet).get("_set_gradient_checkpointing")
    if own is not None and "enable" not in inspect.signature(own).parameters:
        del unet._set_gradient_checkpointing  # type: ignore[attr-defined]


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Return a context in which modules of a folder come before others; offline, and without a tracker."""
    before = dict(os.environ)
    names = ("dataset", "utils", "modified_diffusers_modules", "train_domaingallery")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "ACCELERATE_USE_CPU": "true"}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in list(sys.modules):
            if name.partition(".")[0] in names:
                del sys.modules[name]
        sys.modules.update(hidden)
        os.environ.clear()
        os.environ.update(before)


def write_model(folder: Path, width: int) -> None:
    """Write a UNet of a width with random weights in diffusers' layout, and as little as may be beside it."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        )  # fmt: skip
        levels = 4
        vae = AutoencoderKL(
            latent_channels=4, block_out_channels=(8,) * levels, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=3, hidden_size=768, intermediate_size=8, num_hidden_layers=1, bos_token_id=0,
                eos_token_id=1, pad_token_id=1,
            )
        )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text), ("scheduler", scheduler)):
        part.save_pretrained(folder / name)
    words = folder / "tokenizer"
    words.mkdir()
    ends = ["<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate([*ends, "a</w>"])}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(str(words))


def write_images(folder: Path, count: int, side: int) -> None:
    """Write pictures of noise."""
    from PIL import Image

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=generator)
        with contextlib.closing(Image.fromarray(pixels.numpy())) as image:
            image.save(folder / f"{number}.jpg")
