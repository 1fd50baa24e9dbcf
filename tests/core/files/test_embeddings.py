"""Files of new words."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from domaingallery_core.errors import FileError
from domaingallery_core.files.embeddings import save_embedding

TWO = {"clip_l": torch.ones(2, 4), "clip_g": torch.full((2, 6), 2.0)}


def names(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys()), file.metadata()


def test_one_text_encoder_has_the_name_that_most_programs_read_and_two_have_their_own(tmp_path):
    alone = save_embedding(tmp_path / "one.safetensors", {"clip_l": TWO["clip_l"]}, {"who": "me"})
    both = save_embedding(tmp_path / "two.safetensors", TWO)

    assert names(alone)[0] == {"emb_params"} and names(alone)[1]["who"] == "me"
    assert names(both)[0] == {"clip_l", "clip_g"}


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "an embedding of at least one text encoder, got none"),
        ({"clip_l": torch.ones(4)}, "finite vectors"),
        ({"clip_l": torch.ones(0, 4)}, "finite vectors"),
        ({"clip_l": torch.full((1, 4), torch.nan)}, "finite vectors"),
    ],
)
def test_what_is_no_vectors_is_not_written(tmp_path, vectors, message):
    with pytest.raises(FileError, match=message):
        save_embedding(tmp_path / "a.safetensors", vectors)
    assert not list(tmp_path.iterdir())


def test_no_file_is_overwritten_unless_that_is_asked_for(tmp_path):
    path = save_embedding(tmp_path / "a.safetensors", TWO)

    with pytest.raises(FileExistsError):
        save_embedding(path, TWO, replace=False)
