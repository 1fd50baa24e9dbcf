"""Dataset: from images to latents that can be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core import images as core_images
from ..domaingallery_core.categories import category_numbers
from ..domaingallery_core.datasets import Examples
from ..domaingallery_core.errors import InputError
from ..domaingallery_core.generators import generator
from ..domaingallery_core.images import CROPS, Size, bucket_sizes, checked_images, nearest_bucket
from .node import Node
from .progress import check_interrupt, node_id, say
from .sockets import CATEGORY, Dataset, LatentDataset, Prompts

ENCODED_AT_ONCE = 8
FITS = ["centre crop", "random crop", "buckets"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Hold an image of the domain (1 H W C), its number for messages, and its mask (1 H W C)."""

    number: int
    image: Tensor
    mask: Tensor | None = None

    @property
    def size(self) -> Size:
        return self.image.shape[1], self.image.shape[2]


class DomainGalleryDataset(Node):
    """Encode source and target images once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryDataset",
            display_name="Dataset",
            category=CATEGORY,
            description="Puts source images and images of the domain together, encoded for training.",
            search_aliases=["training data", "few-shot images", "instance images", "training images"],
            is_input_list=True,
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that is trained."),
                io.Image.Input(
                    "source_images", tooltip="From Source Images: the category as the base model draws it."
                ),
                io.Image.Input(
                    "target_images",
                    optional=True,
                    tooltip="About ten images of the domain, all of the category, as a batch or a list; "
                    "their sizes may differ. They get the size of the source images. Erasing needs none.",
                ),
                Prompts.Input(
                    "prompts",
                    optional=True,
                    tooltip="From Domain Prompts; needed for a domain of several categories only.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One for each image of the domain: white is learned, black is not.",
                ),
                io.String.Input(
                    "categories",
                    default="",
                    optional=True,
                    tooltip="With several categories: which image shows which, in order, such as "
                    '"6 face, 4 house". Or connect the captions of the images.',
                ),
                io.Combo.Input(
                    "fit",
                    options=FITS,
                    default=FITS[0],
                    optional=True,
                    tooltip="How images get the size of the source images: cropped at the centre, cropped "
                    f"anywhere ({CROPS} times each, as the paper's code crops), or sorted by shape into "
                    "buckets, which crops least.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    optional=True,
                    tooltip="Learn from mirror images as well. Not for domains with a left and a right.",
                ),
                io.Int.Input(
                    "held_out",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="How many images at the end, of each category, are not learned from; the "
                    "validation loss is measured on them.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[Dataset.Output(display_name="dataset", tooltip="For the training nodes.")],
        )

    @classmethod
    def execute(
        cls, vae, source_images, target_images=None, prompts=None, masks=None, categories=None, fit=None,
        flip=None, held_out=None,
    ) -> io.NodeOutput:  # fmt: skip
        fit, flip, held_out = (given[0] if given else None for given in (fit, flip, held_out))
        words = [part.category for part in prompts[0].parts()] if prompts else [None]
        sources = by_category(source_images, words)
        pictures = [*pictures_of(target_images or [], masks)]
        numbers = [0] * len(pictures)
        if len(words) > 1 and pictures:
            numbers = category_numbers(categories or [""], words, len(pictures))
        parts: list[LatentDataset] = []
        for number, (word, source) in enumerate(zip(words, sources, strict=True)):
            chosen = [p for p, n in zip(pictures, numbers, strict=True) if n == number]
            if pictures and not chosen:
                raise InputError(
                    f"Expected images of each category, got none of {word!r}. Add some, or leave the "
                    "category out of Domain Prompts."
                )
            parts += category_parts(vae[0], source, chosen, word, fit or FITS[0], bool(flip), held_out or 0)
        say(node_id(cls), summary(parts))
        return io.NodeOutput(replace(parts[0], more=tuple(parts[1:]), vae=vae[0]))


def summary(parts: Sequence[LatentDataset]) -> str:
    """Return what a dataset holds, in a line for the node."""
    texts = []
    for part in parts:
        text = f"{len(part.source)} source images"
        if part.target is not None:
            masked = " with masks" if part.target.masks is not None else ""
            text = f"{len(part.target)} images{masked}, {text}"
        if part.validation is not None:
            text += f", {len(part.validation)} held out"
        height, width = part.source.latents.shape[-2:]
        shape = (
            f" ({width} x {height} latents)" if len({p.source.latents.shape[2:] for p in parts}) > 1 else ""
        )
        texts.append(f"{part.category}: {text}{shape}" if part.category else f"{text}{shape}")
    return "; ".join(texts)


def by_category(images: Sequence[Tensor], words: Sequence[str | None]) -> list[Tensor]:
    """Return the source images (B H W C) of each category, all of the size of the first.

    Raises:
        InputError: there are none, or not a batch for each of several categories.
    """
    if len(words) > 1 and len(images) != len(words):
        raise InputError(
            f"Expected source images of each of the categories {', '.join(map(str, words))}, got "
            f"{len(images)} batch(es). Connect the same Domain Prompts to Source Images and Dataset."
        )
    checked = [checked_images(batch, "source images") for batch in images]
    if not checked:
        raise InputError("Expected source images, got none. Connect Source Images.")
    size = checked[0].shape[1], checked[0].shape[2]
    fitting = [
        core_images.centre_crop(core_images.cover(batch, size, name="source images"), size)
        for batch in checked
    ]
    return fitting if len(words) > 1 else [torch.cat(fitting)]


def pictures_of(batches: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Iterator[Picture]:
    """Yield the images of the domain one by one.

    Raises:
        InputError: there are as many masks as images, or one is black all over.
    """
    images = [image[None] for batch in batches for image in checked_images(batch, "target images")]
    if masks is None:
        yield from (Picture(number, image) for number, image in enumerate(images, 1))
        return
    flat = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if len(flat) != len(images):
        raise InputError(
            f"Expected a mask for each of the {len(images)} images of the domain, got {len(flat)}. "
            "Connect as many masks as images, or none."
        )
    for number, (image, mask) in enumerate(zip(images, flat, strict=True), 1):
        if not float(mask.max()) > 0:
            raise InputError(
                f"Expected masks with something white in them, got a black one for image {number}. "
                "Paint what is to be learned, or leave the image out."
            )
        yield Picture(number, image, core_images.as_mask_image(mask, (image.shape[1], image.shape[2])))


def category_parts(
    vae: Any,
    source: Tensor,
    pictures: list[Picture],
    word: str | None,
    fit: str,
    flip: bool,
    held_out: int,
) -> list[LatentDataset]:
    """Return the dataset of one category: one part, or with buckets one for each shape.

    Raises:
        InputError: images are too small, or all of them are held out.
    """
    size = source.shape[1], source.shape[2]
    if not pictures:
        return [LatentDataset(source=encode(vae, source), category=word)]
    if held_out >= len(pictures):
        raise InputError(
            f"Expected images to learn from besides {held_out} held out, got {len(pictures)} in all. "
            "Lower held_out or add images."
        )
    kept, apart = pictures[: len(pictures) - held_out], pictures[len(pictures) - held_out :]
    groups = {size: kept}
    if fit == "buckets":
        sizes = bucket_sizes(size)
        groups = {}
        for picture in kept:
            groups.setdefault(nearest_bucket(picture.size, sizes), []).append(picture)
    parts = []
    for shape, members in groups.items():
        fitting = core_images.centre_crop(core_images.cover(source, shape, name="source images"), shape)
        target = encode_pictures(vae, members, shape, random=fit == "random crop", flip=flip)
        parts.append(LatentDataset(source=encode(vae, fitting), target=target, category=word))
    if apart:
        validation = encode_pictures(vae, apart, next(iter(groups)), random=False, flip=False)
        parts[0] = replace(parts[0], validation=validation)
    return parts


def encode_pictures(vae: Any, pictures: list[Picture], size: Size, *, random: bool, flip: bool) -> Examples:
    """Return images of the domain, cropped to a size, with their masks, as examples."""
    covering = [core_images.cover(p.image, size, name=f"target images (number {p.number})") for p in pictures]
    # One crop holds all of an image that has the shape of the size.
    crops = CROPS if random and any(image.shape[1:3] != size for image in covering) else 1

    def variants(picture: Picture, image: Tensor) -> Tensor:
        stream = generator(picture.number, "crop")  # the same for an image and its mask
        return core_images.variants(image, size, crops=crops, flip=flip, generator=stream)

    rows = [variants(picture, image) for picture, image in zip(pictures, covering, strict=True)]
    examples = replace(encode(vae, torch.cat(rows)), variants=crops * (1 + flip))
    if pictures[0].mask is None:
        return examples
    masks = [variants(p, core_images.cover(p.mask, size)) for p in pictures if p.mask is not None]
    height, width = examples.latents.shape[-2:]
    return replace(examples, masks=core_images.latent_masks(torch.cat(masks), (height, width)))


def encode(vae: Any, images: Tensor) -> Examples:
    """Return the latents of images (B H W C), with the deviations of the posterior where the VAE has one."""
    latents, deviations = [], []
    for chunk in images.split(ENCODED_AT_ONCE):
        check_interrupt()
        mean, deviation = encode_chunk(vae, chunk)
        latents.append(mean)
        deviations.append(deviation)
    known = [deviation for deviation in deviations if deviation is not None]
    return Examples(torch.cat(latents), torch.cat(known) if len(known) == len(latents) else None)


def encode_chunk(vae: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a VAE encodes images to, a mean, and the deviation of its normal posterior if it has one.

    The moments pass through the VAE's regularization, where a hook reads them. When the host encodes tiles
    for want of memory there is no deviation.
    """
    network = getattr(vae, "first_stage_model", None)
    regularization = getattr(network, "regularization", None)
    normal = isinstance(regularization, DiagonalGaussianRegularizer)
    if not normal or getattr(network, "bn", None) is not None:  # moved and scaled after it
        return vae.encode(images), None
    moments: list[Tensor] = []
    hook = regularization.register_forward_pre_hook(lambda _, given: moments.append(given[0]))
    try:
        mean = vae.encode(images)
    finally:
        hook.remove()
    parts = [given.chunk(2, dim=1)[1].to(mean) for given in moments]
    if sum(map(len, parts)) != len(mean) or any(part.shape[1:] != mean.shape[1:] for part in parts):
        return mean, None
    log_variance = torch.cat(parts)
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp()
