"""A row measured: a stage as the training nodes run it, or sampling as Domain KSampler does it."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_training import WORDS, Pack

from .rows import LONG, STAGES, STEPS, Row
from .sizes import Size, TooLarge, check_system_memory, random_of_size

PROMPTS = ("target", "source", "bare", "empty")
#: Source images, as many as the similarity term asks for, and a batch of others.
SOURCES = 4


class Workbench:
    """Measure rows on the device of the host; the model of the last one stays there.

    Attributes:
        compiler: the backend of torch.compile.
    """

    def __init__(self, pack: Pack, sizes: Mapping[str, Size], compiler: str = "inductor") -> None:
        import comfy.model_management
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.pack, self.sizes, self.compiler = pack, sizes, compiler
        self.management = comfy.model_management
        self.device: torch.device = comfy.model_management.get_torch_device()
        self._model: tuple[tuple[str, str], Any] | None = None

    def measure(self, row: Row, until: float) -> dict[str, Any]:
        """Return the figures of a row by name; after a moment of the clock no more than one step is timed."""
        model = self._placed(row)
        try:
            if row.compiled:
                model = self._compiled(model)
            return self._trained(model, row, until) if row.trains else self._sampled(model, row)
        finally:
            if row.compiled:
                torch.compiler.reset()

    def drop(self) -> None:
        """Let go of the model, which may not be as it was."""
        self._model = None
        self.give_back()

    def give_back(self) -> None:
        """Give memory back that nothing uses any more."""
        gc.collect()
        # What the host loaded by a clone that is gone it takes for lost; the model itself may be there.
        loaded = self.management.current_loaded_models
        loaded[:] = [each for each in loaded if each.model is not None]
        self.management.cleanup_models()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def unfit(self, error: BaseException) -> str:
        """Return what an error says of a row that does not fit; "" where it says something else."""
        errors = self.pack["domaingallery_core.errors"]
        fitting = self.pack["domaingallery_core.memory.fitting"]
        if isinstance(error, TooLarge):
            return f"too large: {error}"
        if fitting.out_of_memory(error) or isinstance(error, errors.OutOfMemory):
            return "out of memory"
        if isinstance(error, errors.InputError) and "whole model on the device" in str(error):
            return "too large for the device without offload"
        return ""

    @torch.inference_mode()
    def _placed(self, row: Row) -> Any:
        """Return the model of a row, in system memory if it is to be offloaded, as the host knows it."""
        key, size = (row.model, row.base), self.sizes[row.model]
        if self._model is None or self._model[0] != key:
            self.drop()
            self._model = key, random_of_size(size, row.base)
        model = self._model[1]
        devices = {weight.device for weight in model.model.diffusion_model.parameters()}
        if devices == {self.device} and row.offload != "on":
            self.management.load_models_gpu([model], force_full_load=True)
        elif row.offload == "on" and devices != {torch.device("cpu")}:
            check_system_memory(model.model_size())
            self.management.unload_all_models()
            model.model.to("cpu")
            self.give_back()
        return model

    def _compiled(self, model: Any) -> Any:
        """Return a MODEL as the host's node TorchCompileModel gives it."""
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        return TorchCompileModel.execute(model, self.compiler)[0]

    def _prompts(self, size: Size) -> Any:
        sockets, generator = self.pack["nodes.sockets"], torch.Generator().manual_seed(0)
        encoded = {name: size.prompt(generator) for name in PROMPTS}
        return sockets.DomainPrompts((sockets.CategoryPrompts(**WORDS, **encoded),))

    def _trained(self, model: Any, row: Row, until: float) -> dict[str, Any]:
        """Train for some steps after a dry run and a first one, with all else as the nodes have it."""
        pack, size = self.pack, self.sizes[row.model]
        sockets, host = pack["nodes.sockets"], pack["nodes.host.model"]
        memory, fitting = pack["nodes.host.network.memory"], pack["nodes.train.fitting"]
        weights = {} if size.similarity else {"similarity": 0.0}
        given = sockets.TrainingOptions(weights=weights, batch_size=size.batch)
        plan = given.plan(STAGES[row.task], 1000, 1e-4, 0)
        options = sockets.RunOptions(
            preview_every=0, gradient_checkpointing=row.checkpointing, offload=row.offload
        )
        latents = torch.randn(SOURCES + size.batch, *size.latents, generator=torch.Generator().manual_seed(0))
        examples = pack["domaingallery_core.data.examples"].Examples
        images = sockets.LatentPart(source=examples(latents), target=examples(0.9 * latents[: size.batch]))
        dataset = sockets.LatentDataset((images,))
        pairs = pack["nodes.train.data"].with_prompts(self._prompts(size), dataset)
        fit = fitting.Fit(model, plan, options, pairs, pack["nodes.train.live"].Live(None, model, 1000))
        home = sum(weight.nbytes for block in fit.home for weight in block.parameters())
        paced = Paced(self.device, until)
        with torch.inference_mode(), ExitStack() as stack:
            stack.enter_context(host.training(model, home=fit.home))
            computing = stack.enter_context(memory.precision(model, plan.precision))
            denoiser = host.HostDenoiser(model)
            parts = pack["nodes.train.data"].training_parts(model, denoiser, {"domain": pairs}, plan)
            blocks = stack.enter_context(memory.gradient_checkpointing(model, row.checkpointing, fit.home))
            adapter, parts = pack["nodes.train.trained"].TrainedAdapter().put(stack, denoiser, parts, plan)
            if fit.home:
                pack["nodes.host.network.offloading"].bring(adapter, self.device)
            fitted = fit.fitting(blocks, computing)
            pack["domaingallery_core.run.trainer"].train(
                denoiser, adapter, parts, plan, enough=paced, fitting=fitted
            )
            found = {
                "seconds": paced.seconds(), "steps": len(paced.moments) - 1, "peak": paced.peak(),
                "computes in": str(computing.dtype).removeprefix("torch."), "twice": len(blocks.again),
                "blocks": len(blocks), "system memory": home, "rows at once": fitted.denoiser.most,
            }  # fmt: skip
        if (estimate := fitted.estimate) is not None:
            stays = sum(weight.nbytes for weight in model.model.parameters()) - home
            found |= {"estimated peak": stays + estimate.needed, "estimated seconds": estimate.seconds}
        if row.compiled:  # its trial compiles
            found |= {"estimated seconds": None}
        return found

    def _sampled(self, model: Any, row: Row) -> dict[str, Any]:
        """Sample one image by plain guidance and with enhancement, in turns; the first turn warms up."""
        nodes, size = self.pack["nodes.draw.sampling"], self.sizes[row.model]
        prompts, found, evaluated = self._prompts(size), dict[str, Any](), list[int]()
        given = prompts.first

        def noted(apply: Any, args: dict[str, Any]) -> Tensor:
            evaluated.append(args["input"].shape[0])
            return apply(args["input"], args["timestep"], **args["c"])

        watched = model.clone()
        watched.set_model_unet_function_wrapper(noted)
        for turn, steps in enumerate((1, STEPS)):
            for name, mode in (("", "none"), ("enhanced ", "V-uncond")):
                with torch.inference_mode():
                    guider = nodes.make_guider(
                        watched, given.target, given.empty, prompts, mode, size.cfg, 1.0
                    )
                    evaluated.clear()
                    taken = self._drawn(guider, size, steps) | {"rows": sum(evaluated) / (steps + 1)}
                if turn:
                    found |= {f"{name}{key}": value for key, value in taken.items()}
        return found

    def _drawn(self, guider: Any, size: Size, steps: int) -> dict[str, Any]:
        """Draw with one step more than are timed; return the figures of a step."""
        nodes, moments = self.pack["nodes.draw.sampling"], list[float]()

        def stamp(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            moments.append(now(self.device))

        sigmas = nodes.schedule(guider.model_patcher, steps + 1, "euler", "normal", 1.0)
        reset_peak(self.device)
        nodes.sample(guider, "euler", sigmas, {"samples": torch.zeros(1, *size.latents)}, 0, stamp)
        seconds = median(after - before for before, after in pairwise(moments))
        return {"seconds": seconds, "steps": steps, "peak": peak(self.device)}


class Paced:
    """Tell after each step whether it is enough: some timed ones after a first, fewer if they are long."""

    def __init__(self, device: torch.device, until: float) -> None:
        self.device, self.until, self.began = device, until, time.perf_counter()
        self.moments: list[float] = []

    def __call__(self) -> bool:
        self.moments.append(now(self.device))
        timed, moment = len(self.moments) - 1, self.moments[-1]
        if not timed:
            reset_peak(self.device)
            return False
        return timed >= STEPS or moment > self.until or moment - self.moments[0] > LONG

    def seconds(self) -> float:
        """Return those of a step."""
        return median(after - before for before, after in pairwise(self.moments))

    def peak(self) -> int | None:
        """Return the bytes that were allocated at most in the steps that were timed."""
        return peak(self.device)


def now(device: torch.device) -> float:
    """Return the clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Count from here on how much is allocated at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Return the bytes that were allocated at most; None where no allocator tells."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
