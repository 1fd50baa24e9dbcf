"""What a training shows on its node while it goes on, and the pictures that it returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import folder_paths
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ...domaingallery_core.pictures.curves import plot, shown_steps, stacked, strip
from ...domaingallery_core.pictures.grids import image_to_tensor, tensor_to_images
from ...domaingallery_core.run.checkpoints import Checkpoints
from ...domaingallery_core.run.trainer import StepEvent, TrainingResult
from ..host.pixels.encoding import pixels
from ..host.pixels.latents import vae_latents, with_frames
from ..host.progress import Progress, check_interrupt, duration

log = logging.getLogger("domaingallery")
T = TypeVar("T")

#: Seconds between two pictures on the node, and the longer side of one in pixels.
PICTURE_EVERY, PICTURE_SIZE = 4.0, 800
DECODED_AT_ONCE = 4
NO_PREVIEWS = (
    "Expected a training with previews for this output, got one without. "
    "Set preview_every in Domain Run Options and connect that node to the training."
)
NO_PLOT = "Expected a plot of the losses, got none. The training node says why."


class Live:
    """Show a bar, a line of text, the losses and the latest pictures on a node.

    Attributes:
        note: what is said of the whole training, under what is said of a step.
    """

    def __init__(
        self, node: str | None, model: ModelPatcher, steps: int, checkpoints: Checkpoints | None = None
    ) -> None:
        self.progress = Progress(node, steps)
        self.model, self.checkpoints = model, checkpoints
        self.previews: dict[int, list[Image.Image]] = {}
        self.note = ""
        self._pictured = time.perf_counter()

    def show(self, event: StepEvent) -> None:
        """Show a step. Raises the host's interrupt."""
        picture = attempt("the picture on the node", lambda: self._picture(event))
        text = "\n".join(filter(None, (step_text(event), self.note, self._kept("kept in {}"))))
        self.progress.update(event.step, text, picture)

    def _picture(self, event: StepEvent) -> tuple[str, Image.Image, int] | None:
        """Return the strip and the plot as one picture: after each preview, else every few seconds."""
        now = time.perf_counter()
        drawn = event.previews.keys() - self.previews.keys()
        if not drawn and now - self._pictured < PICTURE_EVERY:
            return None
        self._pictured = now
        for step in sorted(drawn):
            self.previews[step] = quick_pictures(self.model, event.previews[step])
        parts = [plot(event.losses_so_far, event.validation)]
        shown = {step: self.previews[step] for step in shown_steps(sorted(self.previews))}
        if shown and all(shown.values()):
            parts.insert(0, strip(shown))
        return "JPEG", stacked(parts), PICTURE_SIZE

    def told(self, text: str, *, done: bool) -> None:
        """Say what became of a run; of one that was ended before its last step, where it is kept as well."""
        self.progress.say(text if done else text + self._kept("\nkept in {}"))

    def stopped(self) -> None:
        """Say where a run that ends early is kept, or that it is not any more."""
        text = self._kept("stopped; kept in {}. Run the same again to go on.")
        if text:
            self.progress.say(text)
        elif self.checkpoints is not None and self.checkpoints.finished:
            log.warning("The run was stopped when it was done, and is not kept. The same again begins anew.")

    def _kept(self, text: str) -> str:
        """Return a text with the file of the newest checkpoint; nothing where there is none."""
        if self.checkpoints is None or self.checkpoints.saved is None:
            return ""
        where = self.checkpoints.saved.relative_to(folder_paths.get_output_directory())
        return text.format(f"output/{where.as_posix()}")


def attempt(what: str, make: Callable[[], T]) -> T | None:
    """Return what is made; where that fails, warn of it, as a training needs no picture.

    A cancel goes through.
    """
    try:
        return make()
    except Exception as error:
        log.warning("Expected to make %s, got: %s. What is trained is not touched by it.", what, str(error))
        return None


def step_text(event: StepEvent) -> str:
    """Return a line about a step."""
    if event.step == 0:
        return "looking at the base model"
    if "total" not in event.losses:
        return f"going on from step {event.step} of {event.total_steps}"
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
        rows = with_frames(model, latents).to(model.load_device).split(1)
        return [previewer.decode_latent_to_preview(row) for row in rows]


def plot_image(result: TrainingResult) -> Tensor | ExecutionBlocker:
    """Return the losses of a training as an IMAGE."""
    picture = attempt("the plot", lambda: image_to_tensor(plot(result.losses, result.validation)))
    return (
        ExecutionBlocker("Expected a plot, got none; the training node says why.")
        if picture is None
        else picture
    )


def preview_columns(model: ModelPatcher, vae: Any, result: TrainingResult) -> dict[int, list[Image.Image]]:
    """Return pictures of the previews of a training by step, from a VAE where there is one and it can."""
    shown = {step: result.previews[step] for step in shown_steps(list(result.previews))}
    columns = None
    if shown and vae is not None:
        columns = attempt(
            "pictures of the previews by the VAE",
            lambda: {step: decoded(model, vae, latents) for step, latents in shown.items()},
        )
    if columns is None:
        columns = {step: quick_pictures(model, latents) for step, latents in shown.items()}
    return columns


def preview_image(columns: dict[int, list[Image.Image]]) -> Tensor | ExecutionBlocker:
    """Return pictures of previews as an IMAGE."""
    if not columns or not all(columns.values()):
        return ExecutionBlocker(NO_PREVIEWS)
    return image_to_tensor(strip(columns))


def decoded(model: ModelPatcher, vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return pictures of latents (B C H W) as a model draws them."""
    images = []
    for rows in vae_latents(model, latents).split(DECODED_AT_ONCE):
        check_interrupt()
        images.append(pixels(vae, rows))
    return tensor_to_images(torch.cat(images))
