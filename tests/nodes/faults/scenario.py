"""A small run, from source images to a saved LoRA, that is disturbed and then gone on with."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from tests.nodes.faults.injection import Injector, Operation, file_operations
from tests.nodes.tiny import tiny_model, tiny_prompts

log = logging.getLogger("domaingallery")
Triple = tuple[str, int, str]

STEPS, SIZE = 4, 64
#: What stops a run in its middle.
STOP: Triple = ("backward", 3, "interrupt")
#: Operations that make what somebody misses: where a run goes on without it, it says so.
MISSED = (
    "validation", "previews", "VAE decodes", "plot", "strip", "rough pictures", "os.fsync", "os.replace",
    "safetensors",
)  # fmt: skip


class Vae:
    """A VAE of plain means, with a side of 8 pixels for each latent."""

    latent_channels = 4

    def encode(self, images: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        wide = torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)
        return wide.movedim(1, -1).clamp(0, 1)


@dataclass(slots=True)
class Outcome:
    """Hold how a run ended.

    Attributes:
        error: what ended it; None if it came to its end.
        file: the LoRA that it saved.
        texts: what it warned of, and the notes of its error.
        steps: those that it did.
        disturbed: the operation that failed in it.
    """

    error: BaseException | None = None
    file: Path | None = None
    texts: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    disturbed: str = ""


class Bench:
    """Disturb one small run, over and over, and tell what is not as it must be.

    Args:
        nodes: gives a module of the pack by name.
        folder: for the output of the runs.
        patch: sets an attribute for as long as the bench is used.
    """

    def __init__(
        self, nodes: Callable[[str], Any], folder: Path, patch: Callable[[Any, str, Any], None]
    ) -> None:
        self.nodes, self.folder = nodes, folder
        patch(nodes("domaingallery_core.run.monitor"), "LEVELS", 2)
        patch(nodes("domaingallery_core.files.writing"), "JUST_NOW", 0.0)
        patch(nodes("nodes.train.live"), "PICTURE_EVERY", 0.0)
        patch(nodes("nodes.host.progress"), "send", lambda node, text: None)
        patch(nodes("nodes.files.kept"), "MOST_TRAININGS", 1)
        patch(comfy.utils, "PROGRESS_BAR_ENABLED", False)
        self._keep_each_step(patch)
        self._remember_steps(patch)
        self.model, self.vae, self.prompts = tiny_model(), Vae(), tiny_prompts(nodes)
        self.injector = Injector(self._operations())
        self.target = torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
        self.streams = torch.get_rng_state()
        self.lora: Any = None
        self._clear()
        self.run()  # which fills what the host and torch keep
        self.expected, self.calls = self._undisturbed()
        _, self.calls_gone_on = self._undisturbed(STOP)
        self._clear()
        self.weights = {name: value.clone() for name, value in self.model.model.state_dict().items()}
        gc.collect()
        gc.freeze()
        self.run()
        self._clear()
        gc.collect()
        self.before = self._state()

    def chains(self, faults: list[str]) -> list[list[Triple]]:
        """Return every (operation, n, fault) of a run, and of one that goes on from where it was stopped."""
        return [
            [*before, (name, n, fault)]
            for before, calls in (((), self.calls), ((STOP,), self.calls_gone_on))
            for name, count in sorted(calls.items())
            for n in range(1, count + 1)
            for fault in faults
        ]

    def _undisturbed(self, *before: Triple) -> tuple[tuple[dict, bytes], dict[str, int]]:
        """Return the LoRA of a run, and the calls of its operations."""
        self._clear()
        for triple in before:
            assert self.run(triple).error is not None
        outcome = self.run()
        assert outcome.error is None and outcome.file is not None, outcome
        return lora_in(outcome.file), dict(self.injector.calls)

    def check(self, *triples: Triple) -> list[str]:
        """Disturb a run, once each time it is gone on with, and then let it end; return what is wrong."""
        self._clear()
        problems: list[str] = []
        reached, said = 0, list[str]()
        for triple in (*triples, None):
            outcome = self.run(triple)
            problems += self._problems(outcome) + self._changed()
            told = any("kept" in text or "passed over" in text for text in [*said, *outcome.texts])
            if outcome.steps and outcome.steps[0] <= reached and not told:
                problems.append(f"step {outcome.steps[0]} is done again after {reached}, and nothing says so")
            reached = max(reached, *outcome.steps, 0) if outcome.error is not None else 0
            said = [*said, *outcome.texts] if outcome.error is not None else []
        if outcome.file is None:
            problems.append(f"the same again does not end: {outcome.error!r}")
        return problems + [f"left behind: {path.name}" for path in self._leftovers()]

    def run(self, triple: Triple | None = None) -> Outcome:
        """Draw, encode, train and save, with an error at the n-th call of an operation."""
        outcome, logged = Outcome(disturbed=triple[0] if triple else ""), _Texts()
        log.addHandler(logged)
        self.steps = outcome.steps
        try:
            with self.injector.armed(*(triple or ())):
                outcome.file = self._run()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            outcome.error = error
            _forget_frames(error)
            outcome.texts += getattr(error, "__notes__", [])
        finally:
            log.removeHandler(logged)
        outcome.texts += logged.texts
        for error in self.injector.raised:
            _forget_frames(error)
        return outcome

    def _run(self) -> Path:
        with torch.inference_mode():
            sources, _ = self.nodes("nodes.data.source_images").DomainGallerySourceImages.execute(
                self.model, self.vae, self.prompts, count=4, width=SIZE, height=SIZE, steps=1, cfg=1.0,
                sampler_name="euler", scheduler="normal", batch_size=2, seed=3,
            ).result  # fmt: skip
            encoding = self.nodes("nodes.data.dataset").DomainGalleryDataset
            dataset = encoding.execute([self.vae], sources, [self.target]).result[0]
            torch.manual_seed(0)
            try:
                if self.lora is None:  # or the host has it from before
                    self.lora = self._train(dataset)
            finally:
                self.streams = torch.get_rng_state()
            saving = self.nodes("nodes.files.saving").DomainGallerySaveLora
            path = saving.execute(self.lora, name="domain", key_format="comfyui").result[0]
        self.lora = None
        return Path(path)

    def _train(self, dataset: Any) -> Any:
        sockets = self.nodes("nodes.sockets")
        options = sockets.TrainingOptions(
            weights={"similarity": 0.0}, batch_size=2, dropout=0.1, ema=0.5,
            targets="*attn1*",
        )  # fmt: skip
        run_options = sockets.RunOptions(
            preview_every=2, preview_count=1, preview_steps=1, preview_cfg=1.0, validate_every=2
        )
        node = self.nodes("nodes.train.training").DomainGalleryTrain
        return node.execute(
            model=self.model, prompts=self.prompts, dataset=dataset, steps=STEPS, learning_rate=1e-3, seed=0,
            options=options, run_options=run_options,
        ).result[0]  # fmt: skip

    def _operations(self) -> list[Operation]:
        places = ("run.trainer", "run.moving_average", "files.writing")
        core = {name: self.nodes(f"domaingallery_core.{name}") for name in places}
        live, progress = self.nodes("nodes.train.live"), self.nodes("nodes.host.progress")
        state = self.nodes("domaingallery_core.run.state").RunState
        return [
            Operation("forward", comfy.model_base.BaseModel, "apply_model"),
            Operation("backward", Tensor, "backward"),
            Operation("clip", torch.nn.utils, "clip_grad_norm_"),
            Operation("optimizer", torch.optim.AdamW, "step"),
            Operation("optimizer, done", torch.optim.AdamW, "step", after=True),
            Operation("average", core["run.moving_average"].MovingAverage, "update"),
            Operation("average, done", core["run.moving_average"].MovingAverage, "update", after=True),
            Operation("trial", self.nodes("domaingallery_core.run.trial").Trial, "loss"),
            Operation("draw", core["run.trainer"], "draw"),
            Operation("restore", state, "restore"),
            Operation("restore, done", state, "restore", after=True),
            Operation("checkpoint", state, "checkpoint"),
            Operation("validation", core["run.trainer"], "validation_loss"),
            Operation("previews", core["run.trainer"], "draw_previews"),
            Operation("rough pictures", live, "quick_pictures"),
            Operation("VAE decodes", self.vae.__class__, "decode"),
            Operation("VAE encodes", self.vae.__class__, "encode"),
            Operation("sampling", comfy.sample, "sample"),
            Operation("plot", live, "plot"),
            Operation("strip", live, "strip"),
            Operation("message", progress, "send"),
            Operation("bar", comfy.utils.ProgressBar, "update_absolute"),
            Operation("look for a cancel", progress, "check_interrupt"),
            Operation("metadata", self.nodes("nodes.train.training"), "metadata"),
            Operation("safetensors", core["files.writing"], "save"),
            *file_operations(),
        ]

    def _keep_each_step(self, patch: Callable[[Any, str, Any], None]) -> None:
        training = self.nodes("nodes.train.training")
        checkpoints_of = training.checkpoints_of

        def at_once(*given: Any) -> Any:
            checkpoints = checkpoints_of(*given)
            checkpoints.interval = 0.0
            return checkpoints

        patch(training, "checkpoints_of", at_once)

    def _remember_steps(self, patch: Callable[[Any, str, Any], None]) -> None:
        """Note each step that is done; going on from a checkpoint is none."""
        trainer = self.nodes("domaingallery_core.run.trainer")
        step = trainer._Run._step

        def noted(run: Any, number: int) -> Any:
            found = step(run, number)
            self.steps.append(number)
            return found

        patch(trainer._Run, "_step", noted)

    def _problems(self, outcome: Outcome) -> list[str]:
        """Return what is wrong with how a run ended, and with its files."""
        problems, error = [], outcome.error
        raised = self.injector.raised[0] if self.injector.raised else None
        if error is not None and raised is None:
            problems.append(f"it fails undisturbed: {error!r}")
        elif error is not None and not _caused(error, raised):
            problems.append(f"another error: {error!r} for {raised!r}")
        elif error is None and raised is not None and not isinstance(raised, Exception):
            problems.append("a cancel was passed over")
        elif error is None and raised is not None and not outcome.texts and outcome.disturbed in MISSED:
            problems.append("it went on without a word")
        files = list((self.folder / "loras").rglob("*.safetensors"))
        if error is None and outcome.file not in files:
            problems.append("no file")
        if any(lora_in(path) != self.expected for path in files):
            problems.append("another LoRA")
        for path in (self.folder / "domaingallery").rglob("*.safetensors"):
            try:
                self.nodes("domaingallery_core.files.writing").load_tensors(path)
            except Exception as damaged:
                problems.append(f"damaged: {damaged}")
        return problems

    def _changed(self) -> list[str]:
        """Return what a run left changed in the model and the process."""
        gc.collect()
        now = self._state()
        found = [
            f"{name}: {before} -> {now[name]}" for name, before in self.before.items() if now[name] != before
        ]
        if not torch.equal(self.streams, torch.manual_seed(0).get_state()):
            found.append("the training moved torch's own random numbers")
        weights = self.model.model.state_dict()
        if weights.keys() != self.weights.keys() or any(
            not torch.equal(value, weights[name]) for name, value in self.weights.items()
        ):
            found.append("the MODEL has other weights")
        if comfy.model_management.processing_interrupted():
            found.append("a cancel is left over")
        return found

    def _state(self) -> dict[str, Any]:
        patcher = self.model
        modules = list(patcher.model.modules())
        held = {id(each) for each in (self.lora or {}).values()}
        tensors = [each for each in gc.get_objects() if isinstance(each, Tensor) and id(each) not in held]
        return {
            "modules": len(modules),
            "attributes": hash(tuple(tuple(sorted(module.__dict__)) for module in modules)),
            "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules),
            "gradients": sum(p.requires_grad or p.grad is not None for p in patcher.model.parameters()),
            "modes": sum(module.training for module in modules),
            "options": _shape_of(patcher.model_options),
            "patches": _shape_of([patcher.patches, patcher.object_patches, patcher.wrappers]),
            "in training": comfy.model_management.in_training,
            "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "open files": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0,
            "threads": threading.active_count(),
            "log handlers": len(log.handlers),
            "tensors": len(tensors),
        }

    def _leftovers(self) -> list[Path]:
        """Return what must not be there after a run that came to its end."""
        kept = self.folder / "domaingallery" / "checkpoints"
        return [
            *(path for path in self.folder.rglob("*") if path.suffix == ".part" or path.name == ".lock"),
            *(kept.rglob("*.safetensors") if kept.is_dir() else ()),
        ]

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.lora = None


class _Texts(logging.Handler):
    """Keep what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def lora_in(path: Path) -> tuple[dict, bytes]:
    """Return what is in a file: header and tensors, but not the picture, which is of what was looked at."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    try:
        header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    except ValueError:  # no LoRA at all
        return {}, content
    for name in ("modelspec.thumbnail", "domaingallery.sha256"):
        header["__metadata__"].pop(name, None)
    return header, data


def _caused(error: BaseException, raised: BaseException | None) -> bool:
    """Tell whether an error is the one that was raised, or was made of it."""
    seen: list[BaseException | None] = [error]
    while (last := seen[-1]) is not None and last is not raised:
        seen.append(last.__cause__ or last.__context__)
    return last is raised


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that errors hold, and of the tensors in them."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _shape_of(value: Any) -> Any:
    """Return what can be compared of nested options."""
    if isinstance(value, dict):
        return [(str(name), _shape_of(each)) for name, each in value.items()]
    if isinstance(value, list | tuple):
        return [_shape_of(each) for each in value]
    return id(value)
