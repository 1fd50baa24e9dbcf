"""Domain Prompts: the words of a domain, encoded once."""

from __future__ import annotations

import logging

import comfy.conds
from comfy_api.v0_0_2 import io

from ...domaingallery_core.data.categories import split_categories
from ...domaingallery_core.errors import InputError, shown
from ..checks import check_conditioning
from ..node import Node
from ..sockets import CATEGORY, CategoryPrompts, Conditioning, DomainPrompts, Prompts

MOST_TOKENS = 3  # of an identifier; the words that DreamBooth recommends have one to three


class DomainGalleryPrompts(Node):
    """Make the prompts of a domain from its identifier and category."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryPrompts",
            display_name="Domain Prompts",
            category=CATEGORY,
            description="Names a domain with a rare word and its category with a noun, and encodes the "
            "prompts that training and sampling need.",
            search_aliases=[
                "identifier",
                "trigger word",
                "instance prompt",
                "class prompt",
                "dreambooth prompts",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that is trained."),
                io.String.Input(
                    "identifier",
                    default="sks",
                    tooltip="A rare word that will stand for the domain. Short words that the model hardly "
                    "knows work best; what it does know of the word is erased first.",
                ),
                io.String.Input(
                    "category",
                    default="face",
                    tooltip="The noun for what the images show, for example face, dog or house. A domain of "
                    "several: face, house. To draw another category with a trained LoRA, use a second node "
                    "with that category.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="All prompts, for the nodes of this pack."),
                io.Conditioning.Output(display_name="target", tooltip='"a [identifier] [category]".'),
                io.Conditioning.Output(
                    display_name="source", tooltip='"a [category]", what the base model knows.'
                ),
                io.Conditioning.Output(display_name="identifier", tooltip="The identifier alone."),
                io.Conditioning.Output(display_name="empty", tooltip="The empty prompt, a fitting negative."),
            ],
        )

    @classmethod
    def execute(cls, clip, identifier: str, category: str) -> io.NodeOutput:
        identifier = identifier.strip()
        words = [checked_words(identifier, word)[1] for word in split_categories(category) or [""]]

        def encode(text: str) -> Conditioning:
            encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            check_conditioning(f"the prompt {shown(text)}", encoded, least=1)
            return encoded

        bare, empty = encode(identifier), encode("")
        parts = [
            CategoryPrompts(
                identifier=identifier,
                category=word,
                target=encode(f"a {identifier} {word}"),
                source=encode(f"a {word}"),
                bare=bare,
                empty=empty,
            )
            for word in words
        ]
        for part in parts:
            check_told_apart(part)
        prompts, first = DomainPrompts(tuple(parts)), parts[0]
        warning = token_warning(clip, identifier)
        if warning:
            logging.getLogger("domaingallery").warning(warning)
        return io.NodeOutput(
            prompts, first.target, first.source, first.bare, first.empty,
            ui={"text": [warning]} if warning else None,
        )  # fmt: skip


def token_warning(clip, identifier: str) -> str:
    """Return what to tell about an identifier of many tokens; nothing if it has few."""
    count = token_count(clip, identifier)
    if count <= MOST_TOKENS:
        return ""
    return (
        f"Expected an identifier of at most {MOST_TOKENS} tokens, got {shown(identifier)} with {count}. "
        "It may keep parts of what its pieces mean. Choose a shorter rare word, such as sks."
    )


def token_count(clip, text: str) -> int:
    """Return into how many tokens the text encoder splits a text; of several tokenizers, the fewest."""
    given, empty = clip.tokenize(text), clip.tokenize("")
    if not isinstance(given, dict):
        return 0

    def numbers(tokens) -> list[int]:
        return [entry[0] for row in tokens for entry in row if isinstance(entry[0], int)]

    counts = []
    for name, tokens in given.items():
        special = set(numbers(empty[name]))
        counts.append(sum(token not in special for token in numbers(tokens)))
    return min(counts, default=0)


def checked_words(identifier: str, category: str) -> tuple[str, str]:
    """Return both words without spaces around them.

    Raises:
        InputError: one is empty, or they are the same.
    """
    identifier, category = identifier.strip(), category.strip()
    if not identifier:
        raise InputError(f"Expected an identifier, got {identifier!r}. Enter a rare word such as sks.")
    if not category:
        raise InputError(f"Expected a category, got {category!r}. Enter a noun such as face.")
    if identifier.casefold() == category.casefold():
        raise InputError(
            f"Expected an identifier that differs from the category, got {shown(identifier)} for both. "
            "Enter a rare word such as sks as the identifier."
        )
    return identifier, category


def check_told_apart(prompts: CategoryPrompts) -> None:
    """Check that the text encoder reads the identifier.

    Raises:
        InputError: the prompt is encoded as it is without the identifier, which is cut off or unknown.
    """
    if comfy.conds.is_equal(prompts.target[0][0], prompts.source[0][0]):
        raise InputError(
            f"Expected an identifier that the text encoder reads, got {shown(prompts.identifier)}: "
            f"{shown(prompts.target_text)} and {shown(prompts.source_text)} are the same to it. "
            "Take another word or a shorter category."
        )
