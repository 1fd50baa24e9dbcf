"""The files of the demo that come with the pack."""

from __future__ import annotations

import pytest

from domaingallery_core.errors import FileError
from domaingallery_core.sketchbook.classifier import PATH, Classifier
from domaingallery_core.sketchbook.weights import Weights


@pytest.mark.parametrize("kind", [Weights, Classifier])
def test_a_file_that_is_damaged_or_missing_is_named(tmp_path, kind):
    damaged = tmp_path / "half.safetensors"
    damaged.write_bytes(PATH.read_bytes()[:1000])

    for path in (damaged, tmp_path / "none.safetensors"):
        with pytest.raises(FileError, match=rf"Expected .*{path.name}.*Install the pack again"):
            kind.load(path)
