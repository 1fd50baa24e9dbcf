"""Source Images: what the untouched model draws of a category, kept on disk."""

from __future__ import annotations

import time
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.data.latent_cache import LatentCache
from ...domaingallery_core.errors import InputError
from ...domaingallery_core.fingerprints import fingerprint
from ..files.kept import keep_within_bounds
from ..host.encoding import at_once, check_vae, decoded
from ..host.identity import is_told, model_identity
from ..host.progress import Progress, duration, node_id
from ..host.text import check_text_encoder
from ..inputs import SEEDS, cfg_input, sampler_input, scheduler_input, seed_input, steps_input
from ..node import Node
from ..sockets import CATEGORY, CategoryPrompts, Prompts, Source, SourceLatents

#: How many images of each category are decoded to be looked at.
SHOWN = 16
LARGEST_BATCH = 16


class DomainGallerySourceImages(Node):
    """Draw images of the category with the untouched model (paper section 4.1)."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str, tooltip: str) -> io.Input:
            return io.Int.Input(name, default=512, min=16, max=16384, step=8, tooltip=tooltip)

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
                    default=1000,
                    min=1,
                    max=10000,
                    tooltip="How many images to draw, of each category. The code of the paper draws 1000; "
                    "200 are much quicker, and often do.",
                ),
                side("width", "Width of the images in pixels."),
                side("height", "Height of the images in pixels."),
                steps_input(25, "Sampling steps for each image."),
                cfg_input("Guidance scale. 7.5 is the paper's."),
                sampler_input("dpmpp_2m", "The sampling method, as in KSampler."),
                scheduler_input("karras", "How noise levels are spaced, as in KSampler."),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Images drawn at once; the noise of each stays the same. 0: as many as the "
                    "memory of the device allows.",
                ),
                seed_input("The first image has this seed, the next the following one, and so on."),
            ],
            outputs=[
                Source.Output(
                    display_name="source",
                    is_output_list=True,
                    tooltip="The images for Dataset, kept as latents.",
                ),
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip=f"The first {SHOWN} images of each category, to look at.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, model, vae, prompts, count, width, height, steps, cfg, sampler_name, scheduler, batch_size, seed
    ) -> io.NodeOutput:
        check_vae(model, vae)
        parts = prompts.categories
        progress = Progress(node_id(cls), len(parts) * count * steps)
        latents = empty_latents(model, count, width, height)
        fitting = fitting_batch(model, latents)
        sampling = {"steps": steps, "cfg": cfg, "sampler_name": sampler_name, "scheduler": scheduler}
        base, sources, shown = model_identity(model), [], []
        for number, part in enumerate(parts):
            check_text_encoder(model, [part.source])
            # The number that is asked for is in the key, not the one that the memory allows today.
            decisive = sampling | {"seed": seed, "batch_size": batch_size}
            cache = cache_of(base, part, latents, decisive)
            drawn = draw(
                model, part, latents, **sampling, batch_size=batch_size or cache.batch_size(fitting),
                seed=seed, progress=progress, cache=cache, before=number * count,
            )  # fmt: skip
            pictures = torch.cat([*decoded(vae, drawn[:SHOWN], at_once(height, width))])
            shown.append(pictures)
            sources.append(SourceLatents(latents=drawn, vae=vae, size=tuple(pictures.shape[1:3])))
        keep_within_bounds()
        return io.NodeOutput(sources, shown)


def fitting_batch(model: ModelPatcher, latents: Tensor) -> int:
    """Return how many images fit into the memory of the device at once, both prompts for each."""
    management = comfy.model_management
    free = management.get_free_memory(model.load_device)
    if not management.is_device_cpu(model.load_device):
        free -= model.model_size() - model.loaded_size() + management.minimum_inference_memory()
    size = LARGEST_BATCH
    while size > 1 and model.memory_required([2 * size, *latents.shape[1:]]) > free:
        size //= 2
    return size


def cache_of(
    base: dict[str, str], prompts: CategoryPrompts, latents: Tensor, sampling: dict[str, object]
) -> LatentCache:
    """Return where latents are kept: a folder for everything that determines them but their number.

    Args:
        base: the identity of the MODEL; of one that cannot be told from others nothing is kept.
    """
    if not is_told(base):
        return LatentCache(None)
    decisive = {
        "model": base,
        "prompts": [prompts.source, prompts.empty],
        "shape": list(latents.shape[1:]),
        "sampling": sampling,
    }
    key = fingerprint(decisive)[:32]
    return LatentCache(Path(folder_paths.get_output_directory(), "domaingallery", "source", key))


def empty_latents(model, count: int, width: int, height: int) -> Tensor:
    """Return zeros of the shape (N C H W) that a model draws images of this size from."""
    form = model.get_model_object("latent_format")
    ratio = form.spacial_downscale_ratio
    latents = torch.zeros(count, form.latent_channels, height // ratio, width // ratio)
    return latents.unsqueeze(2) if form.latent_dimensions == 3 else latents


def draw(
    model,
    prompts: CategoryPrompts,
    latents: Tensor,
    *,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    batch_size: int,
    seed: int,
    progress: Progress,
    cache: LatentCache,
    before: int,
) -> Tensor:
    """Sample "a [category]" into latents (N C H W); image i has the noise of seed + i in any batch size.

    Args:
        cache: has those that need not be drawn, and gets the others.
        before: images that were drawn before these, for the progress.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    started, fresh = time.perf_counter(), 0
    drawn: list[Tensor] = []
    for first in range(0, len(latents), batch_size):
        batch = latents[first : first + batch_size]
        known = [cache.read(first + i, tuple(latent.shape), len(batch)) for i, latent in enumerate(batch)]
        if all(latent is not None for latent in known):
            drawn.append(torch.stack([latent for latent in known if latent is not None]))
            done = first + len(batch)
            progress.update((before + done) * steps, f"{done} of {len(latents)} images, kept from before")
            continue

        def show(
            step: int, x0: Tensor, x: Tensor, total: int, first: int = first, size: int = len(batch),
            fresh: int = fresh,
        ) -> None:  # fmt: skip
            now = min(step + 1, total) * size * steps // total  # some samplers take more steps
            left = (time.perf_counter() - started) * ((len(latents) - first) * steps - now)
            left /= max(fresh * steps + now, 1)
            last = step + 1 == total
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer and last else None
            text = f"{first + now // steps} of {len(latents)} images, {duration(left)} left"
            progress.update((before + first) * steps + now, text, preview)

        noise = torch.cat(
            [
                comfy.sample.prepare_noise(latent[None], (seed + i) % SEEDS)
                for i, latent in enumerate(batch, start=first)
            ]
        )
        # A whole batch even where some are known: an image depends a little on those drawn with it.
        found = comfy.sample.sample(
            model, noise, steps, cfg, sampler_name, scheduler, prompts.source, prompts.empty, batch,
            callback=show, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=(seed + first) % SEEDS,
        ).to(batch.device)  # fmt: skip
        if not bool(torch.isfinite(found).all()):
            raise InputError(
                "Expected images from the model, got latents that are not finite. Use the model in another "
                "precision, or take patches off it."
            )
        for i, latent in enumerate(found):
            if known[i] is None:
                cache.write(first + i, latent, len(batch))
        kept = [new if old is None else old.to(new) for old, new in zip(known, found, strict=True)]
        drawn.append(torch.stack(kept))
        fresh += len(batch)
    return torch.cat(drawn)
