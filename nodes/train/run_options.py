"""Domain Run Options: how a training is kept, watched and fitted into memory; its LoRA stays the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ...domaingallery_core.fingerprints import fingerprint
from ...domaingallery_core.run.checkpoints import Checkpoints
from ...domaingallery_core.run.monitor import Monitor
from ...domaingallery_core.settings import settings_of
from ..files.saving import checked_name
from ..node import Node
from ..settings import setting_input
from ..sockets import CATEGORY, RESUME, Run, RunOptions


class DomainGalleryRunOptions(Node):
    """Gather how a run is kept and watched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryRunOptions",
            display_name="Domain Run Options",
            category=CATEGORY,
            description="Checkpoints, previews, validation and memory of a training. What is learned is the "
            "same, whatever is set here.",
            search_aliases=[
                "checkpoint",
                "resume",
                "preview",
                "sample images",
                "validation loss",
                "gradient checkpointing",
                "low vram",
            ],
            inputs=[setting_input(RunOptions, name) for name in settings_of(RunOptions)],
            outputs=[Run.Output(display_name="run_options", tooltip="For the training nodes.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        name = values["run_name"].strip()
        name = checked_name(name, "output/domaingallery/checkpoints") if name else ""
        return io.NodeOutput(RunOptions(**values | {"run_name": name}))


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
        resume=options.resume == RESUME[0],
    )
