"""Prompts, options and datasets as a graph tells them before its nodes run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from PIL import Image

from ...domaingallery_core.data.categories import category_numbers, split_categories
from ...domaingallery_core.data.images import LARGEST_SCALE, Size, bucket_sizes, nearest_bucket
from ...domaingallery_core.errors import DomainGalleryError, InputError, shown
from ..data.folders import caption_of, image_files, input_folder
from ..data.prompts import checked_words
from ..presets import LEFT_OPEN
from ..sockets import CategoryPrompts, DomainPrompts, TrainingOptions
from ..train.training_options import DomainGalleryOptions
from .prompt_graph import UNKNOWN, GraphNode, PromptGraph

#: Stands for a number of images that is not known yet.
MANY = 10**6
#: Of which the sizes of what a model draws are multiples, in every family.
SIDE = 64


@dataclass(frozen=True, slots=True, eq=False)
class ForeseenPart:
    """Stand for a LatentPart that is not made yet: the images as mere numbers."""

    source: range
    target: range | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ForeseenDataset:
    """Stand for a LatentDataset that is not made yet."""

    parts: tuple[ForeseenPart, ...]


@contextmanager
def at(node: GraphNode, here: str) -> Iterator[None]:
    """Let an error say at which node it is, unless that is the one that runs.

    Raises:
        InputError: in place of any error of the pack.
    """
    try:
        yield
    except DomainGalleryError as error:
        raise InputError(str(error) if node.id == here else f"{node}: {error}") from error


class Foresight:
    """Tell what nodes of a graph will give; None where only running it tells.

    Every method raises InputError, with the node where the trouble is, for what cannot work.

    Args:
        here: the id of the node that runs.
    """

    def __init__(self, graph: PromptGraph, here: str) -> None:
        self.graph = graph
        self.here = here

    def prompts(self, node: GraphNode, name: str) -> DomainPrompts | None:
        """Return the words of a Domain Prompts, without what a text encoder makes of them."""
        given = self._linked(node, name, "DomainGalleryPrompts")
        if given is None:
            return None
        identifier, category = (self.graph.value(given, name, "") for name in ("identifier", "category"))
        if not (isinstance(identifier, str) and isinstance(category, str)):
            return None
        with at(given, self.here):
            words = [checked_words(identifier, word) for word in split_categories(category) or [""]]
        parts = [
            CategoryPrompts(identifier=one, category=other, target=[], source=[], bare=[], empty=[])
            for one, other in words
        ]
        return DomainPrompts(tuple(parts))

    def options(self, node: GraphNode) -> TrainingOptions | None:
        """Return the options of a node, those of the LoRA that it begins with if it has none."""
        if self.graph.source(node, "options") is None:
            erased = self.erased(node)
            if erased is not None:
                before = erased.adapter()
                return TrainingOptions(kind=before.kind, rank=before.rank, alpha=before.alpha)
            return TrainingOptions()
        given = self._linked(node, "options", "DomainGalleryOptions")
        values = self.graph.values(given, DomainGalleryOptions.define_schema()) if given is not None else None
        if given is None or values is None:
            return None
        with at(given, self.here):
            return DomainGalleryOptions.execute(**values)[0]

    def erased(self, node: GraphNode) -> TrainingOptions | None:
        """Return the options with which the LoRA is made that a training begins with."""
        given = self._linked(node, "erased", "DomainGalleryErase")
        return None if given is None else self.options(given)

    def dataset(self, node: GraphNode, name: str) -> ForeseenDataset | None:
        """Return the numbers of images of a Domain Dataset."""
        given = self._linked(node, name, "DomainGalleryDataset")
        if given is None:
            return None
        prompts = self.prompts(given, "prompts")
        if prompts is None and self.graph.source(given, "prompts") is not None:
            return None
        words = prompts.words if prompts is not None else [None]
        pictures = self._pictures(given)
        with at(given, self.here):
            sources = self._sources(given, len(words))
            if self.graph.source(given, "target_images") is None:
                parts = [ForeseenPart(range(sources), None, word) for word in words]
            elif pictures is None:
                parts = [ForeseenPart(range(sources), range(MANY), word) for word in words]
            else:
                parts = self._filled(given, words, sources, pictures)
        return ForeseenDataset(tuple(parts))

    def _filled(
        self, node: GraphNode, words: Sequence[str | None], sources: int, pictures: list[Size]
    ) -> list[ForeseenPart]:
        """Return a part of known images for each category."""
        captions = self._captions(node)
        if len(words) > 1 and captions is None:
            return [ForeseenPart(range(sources), range(MANY), word) for word in words]
        numbers = [0] * len(pictures)
        if len(words) > 1 and captions is not None:
            numbers = category_numbers(captions, [str(word) for word in words], len(pictures))
        held_out = self.graph.value(node, "held_out", 0)
        parts = []
        for number, word in enumerate(words):
            count = numbers.count(number)
            if count == 0:
                raise InputError(
                    f"Expected images of each category, got none of {shown(word)}. Add some, or leave the "
                    "category out of Domain Prompts."
                )
            if isinstance(held_out, int) and held_out >= count:
                raise InputError(
                    f"Expected images to learn from besides {held_out} held out, got {count} in all. "
                    "Lower held_out or add images."
                )
            left = count - held_out if isinstance(held_out, int) else count
            parts.append(ForeseenPart(range(sources), range(left), word))
        self._check_sizes(node, pictures)
        return parts

    def _sources(self, node: GraphNode, categories: int) -> int:
        """Return how many source images a Domain Dataset has of each category."""
        given = self._linked(node, "source_images", "DomainGallerySourceImages")
        count = self.graph.value(given, "count", UNKNOWN) if given is not None else UNKNOWN
        if given is not None and count == LEFT_OPEN:
            options = self.options(given)
            count = UNKNOWN if options is None else options.preset.sources
        prompts = self.prompts(given, "prompts") if given is not None else None
        if not isinstance(count, int) or prompts is None:
            return MANY
        batches = len(prompts.categories)
        if categories > 1 and batches != categories:
            raise InputError(
                f"Expected source images of each of the {categories} categories, got {batches} batch(es). "
                "Connect the same Domain Prompts to Domain Source Images and Domain Dataset."
            )
        return count if categories > 1 else count * batches

    def _captions(self, node: GraphNode) -> list[str] | None:
        """Return what a Domain Dataset is told of the categories of its images."""
        linked = self.graph.source(node, "categories")
        if linked is not None and linked[0].kind == "DomainGalleryLoadImages" and linked[1] == 1:
            with at(linked[0], self.here):
                return [caption_of(file) for file in self._files(linked[0]) or []] or None
        text = self.graph.value(node, "categories", "")
        return [text] if isinstance(text, str) else None

    def _pictures(self, node: GraphNode) -> list[Size] | None:
        """Return the sizes of the images of the domain that a Domain Dataset gets."""
        linked = self.graph.source(node, "target_images")
        if linked is None or linked[1] != 0:
            return None
        given = linked[0]
        with at(given, self.here):
            if given.kind == "DomainGalleryDemoImages":
                count = self.graph.value(given, "count", UNKNOWN)
                return [(64, 64)] * count if isinstance(count, int) else None
            if given.kind == "DomainGalleryLoadImages":
                files = self._files(given)
                return None if files is None else [size_of(file)[0] for file in files]
            if given.kind == "LoadImage":
                name = self.graph.value(given, "image", UNKNOWN)
                path = folder_paths.get_annotated_filepath(name) if isinstance(name, str) else ""
                size, moves = size_of(Path(path)) if os.path.isfile(path) else ((0, 0), True)
                return None if moves else [size]
        return None

    def _files(self, node: GraphNode) -> list[Path] | None:
        folder = self.graph.value(node, "folder", UNKNOWN)
        return image_files(input_folder(folder)) if isinstance(folder, str) else None

    def _check_sizes(self, node: GraphNode, pictures: Sequence[Size]) -> None:
        """Raise InputError where an image is too small for the source images."""
        given = self._linked(node, "source_images", "DomainGallerySourceImages")
        if given is None:
            return
        height, width = (self.graph.value(given, name, UNKNOWN) for name in ("height", "width"))
        fit = self.graph.value(node, "fit", "")
        known = isinstance(height, int) and isinstance(width, int) and isinstance(fit, str)
        if not known or not height or not width or height % SIDE or width % SIDE:
            return  # the model may draw a little smaller
        for number, (tall, wide) in enumerate(pictures, 1):
            scales = []
            for shape in ((tall, wide), (wide, tall)):  # it may be stored on its side
                wanted = (height, width)
                if fit == "buckets":
                    wanted = nearest_bucket(shape, bucket_sizes(wanted))
                scales.append(max(wanted[0] / shape[0], wanted[1] / shape[1]))
            if min(scales) > LARGEST_SCALE:
                raise InputError(
                    f"Expected target images (number {number}) of about {width} x {height} pixels, the size "
                    f"of the source images, got {wide} x {tall}. Use larger images or draw smaller source "
                    "images."
                )

    def _linked(self, node: GraphNode, name: str, kind: str) -> GraphNode | None:
        """Return the node of a kind whose first output an input is linked to."""
        linked = self.graph.source(node, name)
        return linked[0] if linked is not None and linked[0].kind == kind and linked[1] == 0 else None


def size_of(file: Path) -> tuple[Size, bool]:
    """Return the size of an image without decoding it, and whether it has several frames.

    Raises:
        InputError: it is no image.
    """
    try:
        with Image.open(file) as image:
            return (image.height, image.width), bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"Expected an image that can be read, got {file.name} ({error}). Save it again or take it out of "
            "the folder."
        ) from error
