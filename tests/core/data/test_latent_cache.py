"""Latents on disk."""

from __future__ import annotations

import os

import pytest
import torch

from domaingallery_core.data.latent_cache import LatentCache
from domaingallery_core.files.writing import save_tensors


def test_a_latent_comes_back_as_it_was(tmp_path):
    cache, latent = LatentCache(tmp_path / "new" / "folder"), torch.randn(4, 8, 8)

    assert cache.read(7, (4, 8, 8), 4) is None
    cache.write(7, latent, 4)

    assert torch.equal(LatentCache(cache.folder).read(7, (4, 8, 8), 4), latent)
    assert cache.read(8, (4, 8, 8), 4) is None
    assert cache.read(7, (4, 8, 4), 4) is None
    assert [file.name for file in cache.folder.iterdir()] == ["00007.safetensors"]


@pytest.mark.parametrize("damage", ["half", "nothing", "noise"])
def test_a_damaged_file_is_as_none(tmp_path, damage, caplog):
    cache = LatentCache(tmp_path)
    cache.write(0, torch.randn(4, 8, 8), 4)
    file = tmp_path / "00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"half": whole[: len(whole) // 2], "nothing": b"", "noise": b"x" * 99}[damage])

    assert cache.read(0, (4, 8, 8), 4) is None
    assert "Image 0 is drawn again. " in caplog.text
    cache.write(0, torch.ones(4, 8, 8), 4)
    assert torch.equal(cache.read(0, (4, 8, 8), 4), torch.ones(4, 8, 8))


def test_a_latent_that_is_not_finite_is_as_none(tmp_path):
    cache = LatentCache(tmp_path)
    cache.write(0, torch.full((1, 2, 2), torch.nan), 4)

    assert cache.read(0, (1, 2, 2), 4) is None


def test_a_file_of_something_else_is_as_none(tmp_path):
    save_tensors(tmp_path / "00000.safetensors", {"other": torch.zeros(1, 2, 2)}, {})

    assert LatentCache(tmp_path).read(0, (1, 2, 2), 4) is None


@pytest.mark.parametrize("what", ["latent", "batch size"])
def test_a_disk_that_refuses_ends_the_keeping(tmp_path, what, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    cache = LatentCache(tmp_path / "taken" / "folder")

    if what == "latent":
        cache.write(0, torch.zeros(1, 2, 2), 4)
    else:
        assert cache.batch_size(3) == 3

    assert "Source images are no longer kept. " in caplog.text
    assert cache.folder is None and cache.read(0, (1, 2, 2), 4) is None
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_without_a_folder_nothing_is_kept():
    cache = LatentCache(None)
    cache.write(0, torch.zeros(1, 2, 2), 4)

    assert cache.read(0, (1, 2, 2), 4) is None


def test_a_latent_is_as_none_where_others_were_drawn_with_it(tmp_path):
    cache = LatentCache(tmp_path)
    cache.write(0, torch.zeros(1, 2, 2), 4)

    assert cache.read(0, (1, 2, 2), 4) is not None and cache.read(0, (1, 2, 2), 2) is None


def test_the_first_batch_size_is_kept(tmp_path):
    assert LatentCache(tmp_path / "new").batch_size(8) == 8
    assert LatentCache(tmp_path / "new").batch_size(2) == 8
    for content in (b"", b"[]", b'{"batch_size": 0}', b'{"batch_size": "8"}', b'{"batch_size": true}'):
        (tmp_path / "new" / "drawing.json").write_bytes(content)
        assert LatentCache(tmp_path / "new").batch_size(2) == 2
    assert LatentCache(None).batch_size(3) == 3


@pytest.mark.parametrize(("kept", "found"), [(1, 1), (256, 256), (257, 2)])
def test_a_batch_size_that_no_run_has_is_not_taken_up(tmp_path, kept, found):
    """The node draws 1 to 256 at once; a file that says more was not written by it."""
    LatentCache(tmp_path).batch_size(kept)

    assert LatentCache(tmp_path).batch_size(2) == found


def test_a_folder_in_use_is_as_new(tmp_path):
    """The oldest are removed first where source images take too much room."""
    os.utime(tmp_path, (0, 0))

    LatentCache(tmp_path)

    assert tmp_path.stat().st_mtime > 0


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    (tmp_path / ".00000.safetensors.abcd.part").write_bytes(b"half")
    os.utime(tmp_path / ".00000.safetensors.abcd.part", (0, 0))

    LatentCache(tmp_path)

    assert not list(tmp_path.iterdir())
