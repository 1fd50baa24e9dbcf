"""Domain Source Images: what the untouched model draws of a category, kept on disk."""

from __future__ import annotations

import logging
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
from ..host.drawing import AUTOMATIC, chosen, empty_latents
from ..host.families import family_of
from ..host.far import far_size
from ..host.identity import is_told, model_identity
from ..host.pixels.encoding import at_once, check_vae, decoded
from ..host.progress import Progress, duration, node_id
from ..host.text import check_text_encoder
from ..inputs import SEEDS, cfg_input, sampler_input, scheduler_input, seed_input, steps_input
from ..node import Node
from ..presets import LEFT_OPEN
from ..sockets import (
    CATEGORY,
    CategoryPrompts,
    Options,
    Prompts,
    Source,
    SourceLatents,
    TrainingOptions,
)

log = logging.getLogger("domaingallery")

#: How many images of each category are decoded to be looked at.
SHOWN = 16
LARGEST_BATCH = 16


class DomainGallerySourceImages(Node):
    """Draw images of the category with the untouched model (paper section 4.1)."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Input:
            tooltip = f"{name.capitalize()} of the images in pixels. 0: what suits the model."
            return io.Int.Input(name, default=0, min=0, max=16384, step=8, tooltip=tooltip)

        return io.Schema(
            node_id="DomainGallerySourceImages",
            display_name="Domain Source Images",
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
                    default=LEFT_OPEN,
                    min=LEFT_OPEN,
                    max=10000,
                    tooltip="How many images to draw, of each category. 0: what the preset says; 1000, as "
                    "the code of the paper, without one. 200 are much quicker, and often do.",
                ),
                side("width"),
                side("height"),
                steps_input(0, "Sampling steps for each image. 0: what suits the model.", least=0),
                cfg_input("Guidance scale. 0: what suits the model; 7.5 is the paper's.", default=0.0),
                sampler_input(AUTOMATIC, "The sampling method, as in KSampler, or what suits the model."),
                scheduler_input(AUTOMATIC, "How noise levels are spaced, or what suits the model."),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Images drawn at once; the noise of each stays the same. 0: as many as the "
                    "memory of the device allows.",
                ),
                seed_input("The first image has this seed, the next the following one, and so on."),
                Options.Input(
                    "options",
                    optional=True,
                    tooltip="From Domain Training Options: how many images its preset says.",
                ),
            ],
            outputs=[
                Source.Output(
                    display_name="source",
                    is_output_list=True,
                    tooltip="The images for Domain Dataset, kept as latents.",
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
        cls, model, vae, prompts, count, width, height, steps, cfg, sampler_name, scheduler, batch_size, seed,
        options=None,
    ) -> io.NodeOutput:  # fmt: skip
        check_vae(model, vae)
        drawing = family_of(model).drawing
        count = count or (options or TrainingOptions()).preset.sources
        width, height = width or drawing.size, height or drawing.size
        if far := far_size(model, width, height):
            log.warning("%s", far)
        sampling = chosen(drawing, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler)
        steps, parts = sampling["steps"], prompts.categories
        progress = Progress(node_id(cls), len(parts) * count * steps)
        latents = empty_latents(model, count, width, height)
        fitting = fitting_batch(model, latents)
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
        progress.say(
            f"{count} images of {width} x {height}, {steps} steps of {sampling['sampler_name']} "
            f"({sampling['scheduler']}) at cfg {sampling['cfg']:g}"
        )
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
