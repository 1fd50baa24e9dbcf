"""Load Domain Images reads files of all kinds as they look, and names those that it cannot read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nodes.tiny import host_module

HALF = np.concatenate([np.full((4, 8), 51), np.full((4, 8), 204)]).astype(np.uint8)  # dark above light


@pytest.fixture
def folder(comfy, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(host_module("folder_paths"), "input_directory", str(tmp_path))
    (tmp_path / "faces").mkdir()
    return tmp_path / "faces"


def load(nodes, name="faces"):
    return nodes("nodes.data.folders").DomainGalleryLoadImages.execute(name, 2048).result


def rgb(values) -> Image.Image:
    return Image.fromarray(np.repeat(values[..., None], 3, axis=2))


def save_all_kinds(folder: Path) -> list[str]:
    """Write one picture in every mode, and return the names of the files in their order."""
    grey = Image.fromarray(HALF)
    turned = rgb(np.rot90(HALF))  # lies on its side, and says so
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "a turned.png", exif=exif)
    grey.save(folder / "b grey.png")
    rgb(HALF).quantize(4).save(folder / "c palette.png")
    Image.fromarray(HALF.astype(np.uint16) * 257).save(folder / "d deep.png")
    Image.fromarray(HALF.astype(np.int32) * 257).save(folder / "e deep.tif")
    Image.fromarray(HALF.astype(np.float32) / 255).save(folder / "f float.tiff")
    rgb(HALF).convert("CMYK").save(folder / "g print.jpg", quality=100)
    rgb(HALF).save(folder / "h colour.WEBP", lossless=True)
    grey.convert("LA").save(folder / "i grey alpha.png")
    return sorted(file.name for file in folder.iterdir())


def test_every_kind_of_image_looks_as_it_should(nodes, folder):
    names = save_all_kinds(folder)
    (folder / "notes.md").write_text("not an image")

    images, captions = load(nodes)

    assert len(images) == len(names) == len(captions) == 9
    expected = torch.from_numpy(np.repeat(HALF[None, ..., None], 3, axis=3).astype(np.float32) / 255)
    for name, image in zip(names, images, strict=True):
        assert image.shape == (1, 8, 8, 3) and image.dtype == torch.float32, name
        torch.testing.assert_close(image, expected, atol=0.02, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_what_is_clear_becomes_white(nodes, folder):
    image = rgb(HALF).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(64).reshape(8, 8) % 8 < 4, 0, 255).astype(np.uint8)))
    image.save(folder / "clear.png")

    [found], _ = load(nodes)

    assert (found[0, :, :4] == 1).all()
    assert float(found[0, 0, 4, 0]) == pytest.approx(0.2)


def test_captions_are_beside_their_images(nodes, folder):
    for name in ("b", "a", "c"):
        rgb(HALF).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("an old face\n", encoding="utf-8")
    (folder / "c.txt").write_text("a house", encoding="utf-8")

    assert load(nodes)[1] == ["an old face", "", "a house"]


def test_all_images_that_cannot_be_read_are_named(nodes, errors, folder):
    rgb(HALF).save(folder / "good.png")
    rgb(np.tile(HALF, (30, 30))).save(folder / "half.png")
    (folder / "half.png").write_bytes((folder / "half.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("not an image")
    (folder / "nothing.webp").write_bytes(b"")

    with pytest.raises(errors.FileError, match=r"4 images .*, got 3 that cannot.*half.png.*nothing.webp"):
        load(nodes)


@pytest.mark.parametrize("name", ["../..", "/", "other", ".."])
def test_folders_elsewhere_are_refused(nodes, errors, folder, name):
    rgb(HALF).save(folder / "a.png")
    with pytest.raises(errors.InputError, match="Expected folder to be one of"):
        load(nodes, name)
    with pytest.raises(errors.InputError, match="Expected a folder inside the input folder"):
        nodes("nodes.data.folders").input_folder(name)


def test_an_empty_folder_is_refused(nodes, errors, folder):
    module = nodes("nodes.data.folders")

    with pytest.raises(errors.InputError, match="Expected images in the folder 'faces', got none"):
        module.image_files(module.input_folder("faces"))


def options(nodes):
    return nodes("nodes.data.folders").DomainGalleryLoadImages.define_schema().inputs[0].options


def test_folders_that_hold_images_are_offered_and_no_others(nodes, folder):
    """Images of a folder inside are those of that folder; what the host makes for itself holds none."""
    for name in ("empty", "texts", "deep/er", "faces/old"):
        (folder.parent / name).mkdir(parents=True)
    (folder.parent / "texts" / "a.txt").write_text("a face")
    assert options(nodes) == []

    for name in ("faces/a.JPG", "deep/er/b.webp"):
        (folder.parent / name).write_bytes(b"")

    assert options(nodes) == ["deep/er", "faces"]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("faces", True),
        (None, True),  # it comes through a link
        ("empty", "Expected images in the folder 'empty', got none. Put some there"),
        ("other", "Expected a folder inside the input folder, got 'other'. Choose one of the list."),
        ("../x", "Expected a folder inside the input folder, got '../x'"),
        ("a\0b", "Expected folder"),
        (3, "Expected folder"),
    ],
)
def test_a_folder_without_images_is_refused_before_anything_runs(nodes, folder, name, answer):
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    (folder.parent / "empty").mkdir()

    found = nodes("nodes.data.folders").DomainGalleryLoadImages.validate_inputs(name)

    assert found is True if answer is True else found.startswith(answer)


def test_a_changed_folder_is_read_again(nodes, folder):
    fingerprint = nodes("nodes.data.folders").DomainGalleryLoadImages.fingerprint_inputs
    rgb(HALF).save(folder / "a.png")
    first = fingerprint("faces", 2048)
    same = fingerprint("faces", 2048)
    (folder / "a.txt").write_text("a face")

    assert first == same != fingerprint("faces", 2048)


def grey(mode):
    """Return an image of one row of half the largest value, in the range of a kind of pixel."""
    half = {"uint8": 127.5, "uint16": 32767.5, "unit": 0.5, "int32": 2.0**30}[mode.partition(" ")[2]]
    kind = np.float32 if mode.startswith("float") else np.int32
    values = np.full((9, 9), half).astype(kind)
    values[0] = np.float64(half) * 2 - (1 if kind is np.int32 else 0)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    "mode", ["float unit", "float uint8", "float uint16", "int uint8", "int uint16", "int int32"]
)
def test_grey_values_of_any_range_are_neither_black_nor_white(nodes, folder, mode):
    grey(mode).save(folder / "a.tiff")

    [image], _ = load(nodes, "faces")

    assert image.shape == (1, 9, 9, 3)
    assert float(image[0, 5, 5, 0]) == pytest.approx(0.5, abs=0.01) and float(image.max()) > 0.98


@pytest.mark.parametrize(
    ("value", "words"), [(float("nan"), "values that are"), (-3.0, "values below 0, down to -3")]
)
def test_grey_values_that_are_no_picture_are_named(nodes, errors, folder, value, words):
    Image.fromarray(np.full((9, 9), value, dtype=np.float32)).save(folder / "a.tiff")

    with pytest.raises(errors.FileError, match=rf"'a\.tiff' \(it holds {words}"):
        load(nodes, "faces")


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_large_photos_are_loaded_smaller(nodes, folder, kind):
    Image.new("RGB", (3000, 1500), "red").save(folder / f"a.{kind}")
    node = nodes("nodes.data.folders").DomainGalleryLoadImages

    sizes = {side: tuple(node.execute("faces", side).result[0][0].shape[1:3]) for side in (600, 2048, 0)}

    assert sizes == {600: (300, 600), 2048: (1024, 2048), 0: (1500, 3000)}


def test_links_and_names_of_any_kind_do_no_harm(nodes, errors, folder):
    """A link that leads nowhere is named, also where its name is no text."""
    node = nodes("nodes.data.folders").DomainGalleryLoadImages
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    shutil.copy(folder / "a.png", os.path.join(os.fsencode(folder), b"b\xff.png"))
    assert len(load(nodes, "faces")[0]) == 2
    first = node.fingerprint_inputs("faces", 2048)
    (folder / "c.png").symlink_to(folder / "nowhere.png")
    os.symlink("nowhere", os.path.join(os.fsencode(folder), b"d\xff.png"))

    assert first != node.fingerprint_inputs("faces", 2048)
    with pytest.raises(
        errors.FileError, match=r"got 2 that cannot: 'c\.png' \(No such file or directory\); 'd"
    ):
        load(nodes, "faces")
