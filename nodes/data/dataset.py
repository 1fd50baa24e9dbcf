"""Domain Dataset: from images to latents that can be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ...domaingallery_core.data import images as core_images
from ...domaingallery_core.data.categories import category_numbers
from ...domaingallery_core.data.examples import Examples
from ...domaingallery_core.data.images import CROPS, Size, bucket_sizes, nearest_bucket
from ...domaingallery_core.data.parts import turns
from ...domaingallery_core.errors import InputError, shown
from ...domaingallery_core.generators import generator
from ...domaingallery_core.methods.similarity import FEWEST_SOURCES
from ..host.pixels.encoding import encode, images_of
from ..host.progress import node_id, say
from ..node import Node
from ..sockets import CATEGORY, Dataset, LatentDataset, LatentPart, Prompts, Source, SourceLatents

FITS = ["centre crop", "random crop", "buckets"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Hold an image of the domain (1 H W C), its number for messages, and its mask (H W)."""

    number: int
    image: Tensor
    mask: Tensor | None = None

    @property
    def size(self) -> Size:
        return self.image.shape[1], self.image.shape[2]


class DomainGalleryDataset(Node):
    """Encode source and target images once."""

    looks_ahead = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryDataset",
            display_name="Domain Dataset",
            category=CATEGORY,
            description="Puts source images and images of the domain together, encoded for training.",
            search_aliases=["training data", "few-shot images", "instance images", "training images"],
            is_input_list=True,
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model that is trained."),
                io.MultiType.Input(
                    "source_images",
                    [Source, io.Image],
                    tooltip="From Domain Source Images: the category as the base model draws it. Or images "
                    "of your own that show the category.",
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
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            outputs=[Dataset.Output(display_name="dataset", tooltip="For the training nodes.")],
        )

    @classmethod
    def execute(
        cls, vae, source_images, target_images=None, prompts=None, masks=None, categories=None, fit=None,
        flip=None, held_out=None,
    ) -> io.NodeOutput:  # fmt: skip
        fit, flip, held_out = (given[0] if given else None for given in (fit, flip, held_out))
        words = prompts[0].words if prompts else [None]
        size, sources = by_category(source_images, words)
        pictures = [*pictures_of(target_images or [], masks)]
        numbers = [0] * len(pictures)
        if len(words) > 1 and pictures:
            numbers = category_numbers(categories or [""], words, len(pictures))
        parts: list[LatentPart] = []
        for number, (word, source) in enumerate(zip(words, sources, strict=True)):
            chosen = [p for p, n in zip(pictures, numbers, strict=True) if n == number]
            if pictures and not chosen:
                raise InputError(
                    f"Expected images of each category, got none of {shown(word)}. Add some, or leave the "
                    "category out of Domain Prompts."
                )
            fitting = Fitting(vae[0], size, fit or FITS[0], bool(flip), held_out or 0)
            parts += category_parts(fitting, source, chosen, word)
        say(node_id(cls), summary(parts))
        return io.NodeOutput(LatentDataset(tuple(parts), vae[0]))


def summary(parts: Sequence[LatentPart]) -> str:
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


def by_category(
    images: Sequence[Tensor | SourceLatents], words: Sequence[str | None]
) -> tuple[Size, list[list[Tensor | SourceLatents]]]:
    """Return the size of the first source images, which all get, and the batches of each category.

    Raises:
        InputError: there is not a batch for each of several categories.
    """
    if len(words) > 1 and len(images) != len(words):
        raise InputError(
            f"Expected source images of each of the categories {', '.join(map(str, words))}, got "
            f"{len(images)} batch(es). Connect the same Domain Prompts to Domain Source Images and Domain "
            "Dataset."
        )
    for batch in images:
        if not isinstance(batch, SourceLatents):
            core_images.check_batch(batch, "source images")
    first = images[0]
    size = first.size if isinstance(first, SourceLatents) else (first.shape[1], first.shape[2])
    return size, [[batch] for batch in images] if len(words) > 1 else [list(images)]


def pictures_of(batches: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Iterator[Picture]:
    """Yield the images of the domain one by one.

    Raises:
        InputError: there are not as many masks as images, or one is black all over.
    """
    for batch in batches:
        core_images.check_batch(batch, "target images")
    images = [image for batch in batches for image in batch.split(1)]
    if masks is None:
        yield from (Picture(number, image) for number, image in enumerate(images, 1))
        return
    for mask in masks:
        if mask.ndim < 2 or 0 in mask.shape or not mask.is_floating_point():
            raise InputError(
                f"Expected masks (H W) with pixels, got {shown(mask)}. Connect masks of the host."
            )
    flat = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    if len(flat) != len(images):
        raise InputError(
            f"Expected a mask for each of the {len(images)} images of the domain, got {len(flat)}. "
            "Connect as many masks as images, or none."
        )
    for number, (image, mask) in enumerate(zip(images, flat, strict=True), 1):
        if not float(mask.max()) > 0 or not bool(torch.isfinite(mask).all()):
            raise InputError(
                f"Expected masks with something white in them, got a black one for image {number}. "
                "Paint what is to be learned, or leave the image out."
            )
        yield Picture(number, image, mask)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Say how images become latents: by which VAE, at which size, and cropped how."""

    vae: Any
    size: Size
    fit: str
    flip: bool
    held_out: int


def category_parts(
    fitting: Fitting, source: list[Tensor | SourceLatents], pictures: list[Picture], word: str | None
) -> list[LatentPart]:
    """Return the images of one category: one part, or with buckets one for each shape.

    Raises:
        InputError: images are too small, or all of them are held out.
    """
    if not pictures:
        return [LatentPart(source=encode_sources(fitting.vae, source, fitting.size), category=word)]
    held_out = fitting.held_out
    if held_out >= len(pictures):
        raise InputError(
            f"Expected images to learn from besides {held_out} held out, got {len(pictures)} in all. "
            "Lower held_out or add images."
        )
    kept, apart = pictures[: len(pictures) - held_out], pictures[len(pictures) - held_out :]
    groups = {fitting.size: kept}
    if fitting.fit == "buckets":
        sizes = bucket_sizes(fitting.size)
        groups = {}
        for picture in kept:
            groups.setdefault(nearest_bucket(picture.size, sizes), []).append(picture)
    shares = shared_out(sum(map(count_of, source)), [len(members) for members in groups.values()])
    parts = []
    for (shape, members), numbers in zip(groups.items(), shares, strict=True):
        target = encode_pictures(fitting, members, shape, random=fitting.fit == "random crop")
        sources = encode_sources(fitting.vae, source, shape, numbers)
        parts.append(LatentPart(source=sources, target=target, category=word))
    if apart:
        plain = replace(fitting, flip=False)
        validation = encode_pictures(plain, apart, next(iter(groups)), random=False)
        parts[0] = replace(parts[0], validation=validation)
    return parts


def count_of(batch: Tensor | SourceLatents) -> int:
    """Return how many images a batch holds."""
    return len(batch.latents if isinstance(batch, SourceLatents) else batch)


def shared_out(count: int, members: Sequence[int]) -> list[set[int] | None]:
    """Return which of `count` source images each bucket gets, by how often it is read; None for all of them.

    So each is encoded once. A bucket that would get too few for the similarity term gets all, as others do.
    """
    found: list[set[int]] = [set() for _ in members]
    for number, bucket in zip(range(count), turns(members), strict=False):
        found[bucket].add(number)
    if min(map(len, found)) < FEWEST_SOURCES:
        return [None] * len(members)
    return [*found]


def encode_sources(
    vae: Any, source: list[Tensor | SourceLatents], size: Size, numbers: set[int] | None = None
) -> Examples:
    """Return source images, those of the numbers or all, at a size, as examples."""

    def fitted() -> Iterator[Tensor]:
        chosen = range(sum(map(count_of, source))) if numbers is None else sorted(numbers)
        for number, image in zip(chosen, images_of(source, chosen.__contains__), strict=True):
            checked = core_images.checked_image(image, f"source images (number {number + 1})")
            yield core_images.centre_crop(core_images.cover(checked, size, name="source images"), size)

    return encode(vae, fitted())


def encode_pictures(fitting: Fitting, pictures: list[Picture], size: Size, *, random: bool) -> Examples:
    """Return images of the domain, cropped to a size, with their masks, as examples.

    Raises:
        InputError: a crop of one shows nothing that its mask lets learn.
    """
    # One crop holds all of an image that has the shape of the size.
    crops = CROPS if random and any(core_images.covered(p.size, size) != size for p in pictures) else 1

    def variants(picture: Picture, image: Tensor) -> Tensor:
        stream = generator(picture.number, "crop")  # the same for an image and its mask
        return core_images.variants(image, size, crops=crops, flip=fitting.flip, generator=stream)

    def rows() -> Iterator[Tensor]:
        for picture in pictures:
            name = f"target images (number {picture.number})"
            image = core_images.checked_image(picture.image, name)
            yield from variants(picture, core_images.cover(image, size, name=name)).split(1)

    examples = replace(encode(fitting.vae, rows()), variants=crops * (1 + fitting.flip))
    if pictures[0].mask is None:
        return examples
    height, width = examples.latents.shape[-2:]
    masks = []
    for picture in pictures:
        whole = core_images.as_mask_image(picture.mask, picture.size)
        cropped = variants(picture, core_images.cover(whole, size))
        found = core_images.latent_masks(cropped, (height, width))
        if not bool((found.amax(dim=(1, 2, 3)) > 0).all()):
            raise InputError(
                f"Expected masks with something white in each crop of {size[1]} x {size[0]} pixels, got a "
                f"crop of image {picture.number} without. Crop the image around what is to be learned, or "
                "leave it out."
            )
        masks.append(found)
    return replace(examples, masks=torch.cat(masks))
