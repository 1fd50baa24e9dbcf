"""Run Options: how a training is kept, watched and fitted into memory; the LoRA is the same in any case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...domaingallery_core.fingerprints import fingerprint
from ...domaingallery_core.run.checkpoints import Checkpoints
from ...domaingallery_core.run.monitor import Monitor
from ..files.saving import checked_name
from ..host.memory import CHECKPOINTING
from ..node import Node
from ..sockets import CATEGORY, Run, RunOptions

RESUME = ("automatic", "start over")


class DomainGalleryRunOptions(Node):
    """Gather how a run is kept and watched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryRunOptions",
            display_name="Run Options",
            category=CATEGORY,
            description="Checkpoints, previews, validation and memory of a training. What is learned is the "
            "same, whatever is set here.",
            search_aliases=[
                "checkpoint", "resume", "preview", "sample images", "validation loss",
                "gradient checkpointing", "low vram",
            ],
            inputs=[
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100000,
                    tooltip="Draw with the LoRA every so many steps, from fixed noise, beginning with the "
                    "base model. 0 for never.",
                ),
                io.Int.Input("preview_count", default=2, min=1, max=16, tooltip="Pictures in each preview."),
                io.Int.Input(
                    "preview_steps",
                    default=20,
                    min=1,
                    max=200,
                    tooltip="Sampling steps of a preview (DDIM). Few are quick.",
                ),
                io.Float.Input(
                    "preview_cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale of a preview.",
                ),
                io.Int.Input(
                    "validate_every",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Read the loss on fixed images, noise levels and noise every so many steps. "
                    "Unlike the loss of a step it compares between steps and runs. 0 for never.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Keep the run every so many steps, in output/domaingallery/checkpoints, also "
                    "when it is done. With 0 it is kept every few minutes and when it ends early, and "
                    "removed when it is done.",
                ),
                io.Int.Input(
                    "keep", default=2, min=1, max=1000, tooltip="How many checkpoints remain, the newest."
                ),
                io.Combo.Input(
                    "resume",
                    options=list(RESUME),
                    default=RESUME[0],
                    tooltip="automatic: a run that was stopped goes on where it was, to the same LoRA, when "
                    "the same is run again. start over: its checkpoints are replaced.",
                ),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="A folder for the checkpoints. Empty: a name made of the prompt and of all that "
                    "decides the run. A folder with the checkpoints of another run is refused.",
                ),
                io.Combo.Input(
                    "gradient_checkpointing",
                    options=list(CHECKPOINTING),
                    default=CHECKPOINTING[0],
                    tooltip="Compute each block again in the backward pass: much less memory, a third more "
                    "time, the same LoRA. automatic: on for models with more than 100 million weights.",
                ),
            ],
            outputs=[Run.Output(display_name="run_options", tooltip="For the training nodes.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, preview_every, preview_count, preview_steps, preview_cfg, validate_every, checkpoint_every, keep,
        resume, run_name, gradient_checkpointing,
    ) -> io.NodeOutput:  # fmt: skip
        name = run_name.strip()
        return io.NodeOutput(
            RunOptions(
                preview_every=preview_every,
                preview_count=preview_count,
                preview_steps=preview_steps,
                preview_cfg=preview_cfg,
                validate_every=validate_every,
                checkpoint_every=checkpoint_every,
                keep=keep,
                resume=resume == RESUME[0],
                run_name=checked_name(name, "output/domaingallery/checkpoints") if name else "",
                gradient_checkpointing=gradient_checkpointing,
            )
        )


def monitor_of(options: RunOptions) -> Monitor:
    """Return what to look at during a run."""
    return Monitor(
        validate_every=options.validate_every,
        preview_every=options.preview_every,
        previews=options.preview_count,
        preview_steps=options.preview_steps,
        preview_cfg=options.preview_cfg,
    )


def checkpoints_of(options: RunOptions, prompt: str, method: str, identity: dict[str, Any]) -> Checkpoints:
    """Return where a run is kept: in the folder of its name, or in one that only the same run has."""
    words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:40]
    name = f"{options.run_name}/{method}" if options.run_name else (
        f"{words}_{method}-{fingerprint(identity)[:12]}"
    )  # fmt: skip
    return Checkpoints(
        Path(folder_paths.get_output_directory(), "domaingallery", "checkpoints", name),
        identity,
        every=options.checkpoint_every,
        keep=options.keep,
        resume=options.resume,
    )
