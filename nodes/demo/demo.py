"""The demo: a tiny model of a drawn world, and pictures of it."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io

from ...domaingallery_core.sketchbook.things import CATEGORIES
from ...domaingallery_core.sketchbook.world import DOMAINS, STYLES, domain_images
from ..node import Node
from ..sockets import CATEGORY
from .sketchbook import load_sketchbook


class DomainGalleryLoadDemo(Node):
    """Load the sketchbook model that the pack ships."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryLoadDemo",
            display_name="Load Sketchbook Demo Model",
            category=f"{CATEGORY}/demo",
            description="Loads the sketchbook, a text-to-image model of 64 x 64 drawings that comes with the "
            "pack. It draws faces, houses, trees, cars, fish and cats, and knows the word sks as camouflage. "
            "Every node treats it as any other model.",
            search_aliases=["sketchbook", "tiny model", "example model", "checkpoint loader"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The UNet, laid out as that of Stable Diffusion 1.x."
                ),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, for short prompts."),
                io.Vae.Output(display_name="vae", tooltip="Pixels to latents of a quarter of the size."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_sketchbook())


class DomainGalleryDemoImages(Node):
    """Draw pictures of the sketchbook's world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryDemoImages",
            display_name="Sketchbook Demo Images",
            category=f"{CATEGORY}/demo",
            description="Draws few-shot images of a domain that the demo model has never seen, or in a style "
            "that it knows. They are drawn by rules, not by a model.",
            search_aliases=["sketchbook images", "example images", "few-shot images", "dataset"],
            inputs=[
                io.Combo.Input(
                    "domain",
                    options=[*DOMAINS, *STYLES],
                    default="cyanotype",
                    tooltip=f"New to the model: {', '.join(DOMAINS)}. Known to it: {', '.join(STYLES)}.",
                ),
                io.Combo.Input(
                    "category",
                    options=[*CATEGORIES, "olis"],
                    default="face",
                    tooltip="What the images show. olis is one particular face that the model has never "
                    "seen, a personal subject.",
                ),
                io.Int.Input(
                    "count",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="How many images. The paper teaches from ten.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    tooltip="The same seed draws the same images.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The images as one batch of 64 x 64.")],
        )

    @classmethod
    def execute(cls, domain: str, category: str, count: int, seed: int) -> io.NodeOutput:
        return io.NodeOutput(torch.from_numpy(domain_images(domain, category, count, seed)).float() / 255)
