"""A small training in a process of its own, for tests that kill it."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch
from toys import ToyDenoiser, latents, network, part

from domaingallery_core.fingerprints import tensors_hash
from domaingallery_core.generators import generator
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.plan import TrainingPlan
from domaingallery_core.run.trainer import TrainingResult, train
from domaingallery_core.trainables.adapters import Adapter

PLAN = TrainingPlan.of(
    method="domaingallery", steps=30, learning_rate=1e-2, dropout=0.2, offset_noise=0.1, denoise_steps=2,
    ema=0.9, schedule="cosine", warmup_steps=3, accumulation=2,
)  # fmt: skip


def run(plan=PLAN, folder=None, on_step=None, *, seed=0, parts=None, **options) -> TrainingResult:
    """Train on toys; with a folder, checkpoints are kept there. `seed` is that of the base model."""
    model = network(seed)
    base = {"weights": tensors_hash(model.state_dict())}
    parts = parts or [part(latents(5, 1), latents(12, 2))]
    monitor = options.pop("monitor", None)
    with Adapter.inject(model, plan.adapter, generator(plan.seed, "adapter")) as adapter:
        denoiser = options.pop("denoiser", None) or ToyDenoiser(model)
        if folder is None:
            return train(denoiser, adapter, parts, plan, on_step, monitor=monitor)
        checkpoints = Checkpoints(Path(folder), run_identity(adapter, parts, plan, base), **options)
        with checkpoints.claimed():
            result = train(denoiser, adapter, parts, plan, on_step, checkpoints=checkpoints, monitor=monitor)
            checkpoints.finish()
        return result


def killable(folder: str, pipe: Connection) -> None:
    """Train with a checkpoint every 2 steps, telling each step; at the end, the weights and losses."""
    torch.set_num_threads(1)
    result = run(folder=folder, on_step=lambda event: pipe.send(event.step), every=2, keep=2)
    pipe.send((result.resumed, {k: v.numpy() for k, v in result.state_dict.items()}, result.losses))
