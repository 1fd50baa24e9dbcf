"""Prompts of a CLIP with a gradient, and new words in them: their vectors stand where an embedding would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...domaingallery_core.errors import InputError, shown
from ...domaingallery_core.methods.textual_inversion import PLACE
from ...domaingallery_core.trainables.tokens import Tokens
from ..sockets import Conditioning
from .network.memory import attribute


def encoders_of(clip: Any) -> dict[str, SDClipModel]:
    """Return the CLIP text encoders of a CLIP by the names that its tokenizer has for them.

    Raises:
        InputError: it has others.
    """
    tokens, model = clip.tokenize(""), getattr(clip, "cond_stage_model", None)
    names = list(tokens) if isinstance(tokens, dict) else []
    found = {name: getattr(model, f"clip_{name}", None) for name in names}
    if not found or not all(isinstance(each, SDClipModel) for each in found.values()):
        raise InputError(
            f"Expected the CLIP text encoders of Stable Diffusion or SDXL, got {type(clip).__name__} with "
            f"{shown(model)}. Use a model with such text encoders, or train a LoRA of the model alone."
        )
    return found  # type: ignore[return-value]


def check_word(clip: Any, word: str) -> None:
    """Check that the text encoders of a CLIP read a word as one token.

    Raises:
        InputError: one reads another number of tokens, or the CLIP has other text encoders.
    """
    encoders_of(clip)
    for numbers in plain_tokens(clip, word).values():
        if len(numbers) != 1 or not word.isalnum():  # brackets weigh a word, and a colon may name a file
            raise InputError(
                f"Expected a word of one token to begin with, got {shown(word)} with {len(numbers)}. Enter "
                "another common word, such as dog or painting."
            )


def first_vectors(clip: Any, word: str, count: int) -> dict[str, Tensor]:
    """Return the vector of a word, `count` times (K D), for each text encoder by "clip_<its name>"."""
    found = {}
    for name, encoder in encoders_of(clip).items():
        numbers = plain_tokens(clip, word)[name]
        table = encoder.transformer.get_input_embeddings()
        with torch.no_grad():
            row = table(torch.tensor(numbers, device=table.weight.device), out_dtype=torch.float32)
        found[f"clip_{name}"] = row.expand(count, -1)
    return found


def plain_tokens(clip: Any, text: str) -> dict[str, list[int]]:
    """Return the tokens of a text for each text encoder, without those that begin, end and fill."""
    empty, found = clip.tokenize(""), {}
    for name, rows in clip.tokenize(text).items():
        special = {entry[0] for row in empty[name] for entry in row}
        found[name] = [entry[0] for row in rows for entry in row if entry[0] not in special]
    return found


class NewWord:
    """Encode texts with a word whose vectors learn."""

    def __init__(self, clip: Any, tokens: Tokens, word: str) -> None:
        """Take a word of one token, which only marks places."""
        self.clip, self.tokens, self.word = clip, tokens, word

    def encode(self, template: str) -> Conditioning:
        """Return a template encoded as the host encodes prompts, with the vectors as they are now.

        Raises:
            InputError: the text encoder cannot read all of it at once.
        """
        before, _, after = template.partition(PLACE)
        count = len(next(iter(self.tokens.vectors.values())))
        text = f"{before}{' '.join([self.word] * count)}{after}"
        found = {}
        for name, rows in self.clip.tokenize(text).items():
            first = 1 + len(plain_tokens(self.clip, before)[name])
            if len(rows) > 1:
                raise InputError(
                    f"Expected captions of at most {len(rows[0])} tokens, got a longer one with {count} for "
                    "the new word. Lower vectors."
                )
            row = list(rows[0])
            for place, vector in enumerate(self.tokens.vectors[f"clip_{name}"], first):
                row[place] = (vector, *row[place][1:])
            found[name] = [row]
        return self.clip.encode_from_tokens_scheduled(found, show_pbar=False)


def encoded(clip: Any, text: str) -> Conditioning:
    """Return a text as the host encodes prompts."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)


@contextmanager
def learning_text(clip: Any) -> Iterator[None]:
    """Return a context in which a CLIP, loaded for training, encodes and loads nothing."""
    with attribute(clip, "load_model", lambda *_: clip.patcher):
        yield
