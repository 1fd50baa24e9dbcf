"""Source Images and Dataset: from prompts and images to latents that can be trained on."""

from __future__ import annotations

import time

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..domaingallery_core.errors import InputError
from .host import Progress, check_interrupt, duration, node_id
from .sockets import CATEGORY, Dataset, DomainPrompts, LatentDataset, Prompts

ENCODED_AT_ONCE = 8
SEEDS = 2**64


class DomainGallerySourceImages(io.ComfyNode):
    """Draw images of the category with the untouched model (paper section 4.1)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGallerySourceImages",
            display_name="Source Images",
            category=CATEGORY,
            description='Draws images of "a [category]" with the base model. Training keeps by them what '
            "the model knows of the category.",
            search_aliases=["prior images", "class images", "regularization images", "prior preservation"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without a LoRA of the domain."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                Prompts.Input("prompts", tooltip="From Domain Prompts; the images show its category."),
                io.Int.Input(
                    "count",
                    default=200,
                    min=1,
                    max=10000,
                    tooltip="How many images to draw. The code of the paper draws 1000; fewer are quicker.",
                ),
                io.Int.Input(
                    "width", default=512, min=16, max=16384, step=8, tooltip="Width of the images in pixels."
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=16384,
                    step=8,
                    tooltip="Height of the images in pixels.",
                ),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="Sampling steps for each image."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 7.5 is the paper's.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="dpmpp_2m",
                    tooltip="The sampling method, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="karras",
                    tooltip="How noise levels are spaced, as in KSampler.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Images drawn at once. Larger is faster where memory allows; the noise of each "
                    "image stays the same.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - 1,
                    control_after_generate=True,
                    tooltip="The first image has this seed, the next the following one, and so on.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The images, as one batch.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, vae, prompts, count, width, height, steps, cfg, sampler_name, scheduler, batch_size, seed
    ) -> io.NodeOutput:
        progress = Progress(node_id(cls), count * steps)
        latents = draw(
            model, prompts, empty_latents(model, count, width, height), steps=steps, cfg=cfg,
            sampler_name=sampler_name, scheduler=scheduler, batch_size=batch_size, seed=seed,
            progress=progress,
        )  # fmt: skip
        images = []
        for chunk in latents.split(ENCODED_AT_ONCE):
            check_interrupt()
            images.append(vae.decode(chunk))
        return io.NodeOutput(torch.cat(images).flatten(0, -4))  # video VAEs add a dimension for frames


def empty_latents(model, count: int, width: int, height: int) -> Tensor:
    """Return zeros of the shape (N C H W) that a model draws images of this size from."""
    form = model.get_model_object("latent_format")
    ratio = form.spacial_downscale_ratio
    latents = torch.zeros(count, form.latent_channels, height // ratio, width // ratio)
    return latents.unsqueeze(2) if form.latent_dimensions == 3 else latents


def draw(
    model,
    prompts: DomainPrompts,
    latents: Tensor,
    *,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> Tensor:
    """Sample "a [category]" into latents (N C H W); image i has the noise of seed + i in any batch size."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    started = time.perf_counter()
    drawn: list[Tensor] = []
    for first in range(0, len(latents), batch_size):
        batch = latents[first : first + batch_size]

        def show(
            step: int, x0: Tensor, x: Tensor, total: int, first: int = first, size: int = len(batch)
        ) -> None:
            done = first * steps + (step + 1) * size * steps // max(total, 1)
            left = (time.perf_counter() - started) * (len(latents) * steps - done) / max(done, 1)
            last = step + 1 == total
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer and last else None
            text = f"{done // steps} of {len(latents)} images, {duration(left)} left"
            progress.update(done, text, preview)

        noise = torch.cat(
            [
                comfy.sample.prepare_noise(latent[None], (seed + i) % SEEDS)
                for i, latent in enumerate(batch, start=first)
            ]
        )
        drawn.append(
            comfy.sample.sample(
                model, noise, steps, cfg, sampler_name, scheduler, prompts.source, prompts.empty, batch,
                callback=show, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=(seed + first) % SEEDS,
            )
        )  # fmt: skip
    return torch.cat(drawn)


class DomainGalleryDataset(io.ComfyNode):
    """Encode source and target images once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryDataset",
            display_name="Dataset",
            category=CATEGORY,
            description="Puts source images and images of the domain together, encoded for training.",
            search_aliases=["training data", "few-shot images", "instance images", "training images"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that is trained."),
                io.Image.Input(
                    "source_images", tooltip="From Source Images: the category as the base model draws it."
                ),
                io.Image.Input(
                    "target_images",
                    optional=True,
                    tooltip="About ten images of the domain, all of the category. They are cropped at the "
                    "centre and resized to the size of the source images. Erasing needs none.",
                ),
            ],
            outputs=[
                Dataset.Output(
                    display_name="dataset", tooltip="For Erase Prior Attributes and Train Domain LoRA."
                )
            ],
        )

    @classmethod
    def execute(cls, vae, source_images: Tensor, target_images: Tensor | None = None) -> io.NodeOutput:
        source_images = checked_images(source_images, "source images")
        target = None
        if target_images is not None:
            target_images = checked_images(target_images, "target images")
            target = encode(vae, fitted(target_images, *source_images.shape[1:3]))
        return io.NodeOutput(LatentDataset(source=encode(vae, source_images), target=target, vae=vae))


def checked_images(images: Tensor, name: str) -> Tensor:
    """Return images (B H W C) with three channels, in 0..1.

    Raises:
        InputError: there are none, or they hold values that are not numbers.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] < 3:
        raise InputError(
            f"Expected {name} as a batch of RGB images, got a shape of {tuple(images.shape)!r}. "
            "Connect at least one image."
        )
    if not bool(torch.isfinite(images).all()):
        broken = [i + 1 for i, image in enumerate(images) if not bool(torch.isfinite(image).all())]
        raise InputError(
            f"Expected {name} of plain numbers, got values that are not finite in image "
            f"{', '.join(map(str, broken[:5]))}. Leave them out or make them again."
        )
    return images[..., :3].clamp(0, 1)


def fitted(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images (B H W C) to cover a size and crop them at the centre, as the reference prepares its own.

    Raises:
        InputError: they are less than half as large.
    """
    scale = max(height / images.shape[1], width / images.shape[2])
    if scale == 1 and images.shape[1:3] == (height, width):
        return images
    if scale > 2:
        raise InputError(
            f"Expected target images of about {width} x {height} pixels, the size of the source images, got "
            f"{images.shape[2]} x {images.shape[1]}. Use larger images or draw smaller source images."
        )
    size = max(height, round(images.shape[1] * scale)), max(width, round(images.shape[2] * scale))
    resized = interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=True)  # B H W C -> B C H W
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, :, top : top + height, left : left + width].movedim(1, -1).clamp(0, 1)


def encode(vae, images: Tensor) -> Tensor:
    """Return the latents (N C H W) of images (B H W C)."""
    latents = []
    for chunk in images.split(ENCODED_AT_ONCE):
        check_interrupt()
        latents.append(vae.encode(chunk))
    return torch.cat(latents)
