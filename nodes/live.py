"""What a training shows on its node while it goes on, and the pictures that it returns."""

from __future__ import annotations

import time
from typing import Any

import folder_paths
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ..domaingallery_core.checkpoints import Checkpoints
from ..domaingallery_core.grids import image_to_tensor, tensor_to_images
from ..domaingallery_core.trainer import StepEvent, TrainingResult
from .pictures import plot, shown_steps, stacked, strip
from .progress import Progress, duration

#: Seconds between two pictures on the node, and the longer side of one in pixels.
PICTURE_EVERY, PICTURE_SIZE = 4.0, 800
DECODED_AT_ONCE = 4
NO_PREVIEWS = (
    "Expected a training with previews for this output, got one without. "
    "Set preview_every in Run Options and connect that node to the training."
)


class Live:
    """Show a bar, a line of text, the losses and the latest pictures on a node."""

    def __init__(self, node: str | None, model: ModelPatcher, steps: int) -> None:
        self.progress = Progress(node, steps)
        self.model = model
        self.losses: dict[str, list[float]] = {}
        self.validation: dict[int, float] = {}
        self.previews: dict[int, list[Image.Image]] = {}
        self._pictured = time.perf_counter()

    def show(self, event: StepEvent) -> None:
        """Show a step. Raises the host's interrupt."""
        for name, value in event.losses.items():
            self.losses.setdefault(name, []).append(value)
        if event.validation is not None:
            self.validation[event.step] = event.validation
        if event.preview is not None:
            pictures = quick_pictures(self.model, event.preview)
            self.previews |= {event.step: pictures} if pictures else {}
        self.progress.update(event.step, step_text(event), self._picture(event))

    def _picture(self, event: StepEvent) -> tuple[str, Image.Image, int] | None:
        """Return the strip and the plot as one picture: after each preview, else every few seconds."""
        now = time.perf_counter()
        if event.preview is None and now - self._pictured < PICTURE_EVERY:
            return None
        self._pictured = now
        parts = [plot(self.losses, self.validation)]
        if self.previews:
            parts.insert(0, strip({step: self.previews[step] for step in shown_steps(list(self.previews))}))
        return "JPEG", stacked(parts), PICTURE_SIZE

    def stopped(self, checkpoints: Checkpoints) -> None:
        """Say where a run that ends early is kept."""
        if checkpoints.saved is not None:
            where = checkpoints.saved.relative_to(folder_paths.get_output_directory())
            self.progress.say(f"stopped; kept in output/{where.as_posix()}. Run the same again to go on.")


def step_text(event: StepEvent) -> str:
    """Return a line about a step."""
    if event.step == 0:
        return "looking at the base model"
    left = duration(event.seconds_per_step * (event.total_steps - event.step))
    loss, rate = event.losses["total"], event.learning_rate
    return f"step {event.step} of {event.total_steps}, loss {loss:.4f}, rate {rate:.2g}, {left} left"


def quick_pictures(model: ModelPatcher, latents: Tensor) -> list[Image.Image]:
    """Return rough pictures of latents as the host's samplers show them, in no time; none where it cannot."""
    form = model.model.latent_format
    previewer = latent_preview.get_previewer(model.load_device, form)
    if previewer is None and form.latent_rgb_factors is not None:
        previewer = latent_preview.Latent2RGBPreviewer(
            form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
        )
    if previewer is None:
        return []
    with torch.inference_mode(False), torch.no_grad():
        rows = latents.to(model.load_device).split(1)
        return [previewer.decode_latent_to_preview(row) for row in rows]


def plot_image(result: TrainingResult) -> Tensor:
    """Return the losses of a training as an IMAGE."""
    return image_to_tensor(plot(result.losses, result.validation))


def preview_image(model: ModelPatcher, vae: Any, result: TrainingResult) -> Tensor | ExecutionBlocker:
    """Return the previews of a training as an IMAGE, decoded by a VAE where there is one."""
    if not result.previews:
        return ExecutionBlocker(NO_PREVIEWS)
    columns = {}
    for step in shown_steps(list(result.previews)):
        latents = result.previews[step]
        columns[step] = quick_pictures(model, latents) if vae is None else decoded(model, vae, latents)
    return image_to_tensor(strip(columns)) if all(columns.values()) else ExecutionBlocker(NO_PREVIEWS)


def decoded(model: ModelPatcher, vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return pictures of latents (B C H W) as a model draws them."""
    images = [vae.decode(rows) for rows in model.model.process_latent_out(latents).split(DECODED_AT_ONCE)]
    return tensor_to_images(torch.cat(images).flatten(0, -4))
