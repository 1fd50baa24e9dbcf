"""Domain Prompts: an identifier that the text encoder reads, and reads as one word."""

from __future__ import annotations

import pytest
import torch


def test_an_identifier_that_the_text_encoder_does_not_read_is_refused(nodes, errors):
    class Clip:
        """Knows no word of three letters."""

        def tokenize(self, text):
            return ["begin", *(word for word in text.split() if len(word) != 3)]

        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.tensor([[[float(len(word))] for word in tokens]]), {}]]

    node = nodes("nodes.data.prompts").DomainGalleryPrompts

    assert node.execute(Clip(), "olis", "face")[0].first.identifier == "olis"
    with pytest.raises(errors.InputError, match="got 'sks': 'a sks face' and 'a face' are the same to it"):
        node.execute(Clip(), "sks", "face")


def test_an_identifier_of_many_tokens_is_warned_about(nodes, said):
    class Clip:
        """Takes each letter for a token, between a begin and an end, padded with ends."""

        def tokenize(self, text):
            tokens = [1, *(ord(letter) for letter in text), 2]
            return {"l": [[(token, 1.0) for token in tokens + [2] * (40 - len(tokens))]]}

        def encode_from_tokens_scheduled(self, tokens):
            return [[torch.tensor([[[float(token)] for token, _ in tokens["l"][0]]]), {}]]

    prompts = nodes("nodes.data.prompts")

    short = prompts.DomainGalleryPrompts.execute(Clip(), "sks", "face")
    long = prompts.DomainGalleryPrompts.execute(Clip(), "myword", "face, house")

    assert not short.ui and "got 'myword' with 6" in long.ui["text"][0]
    assert said == long.ui["text"]
    assert [part.target_text for part in long[0].categories] == ["a myword face", "a myword house"]
