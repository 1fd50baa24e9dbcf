"""Datasets in a real host process: folders, categories, what is kept on disk, and images that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.nodes.test_real_host import Prompt, graph, node
from tools.host.client import Event, Interrupted, PromptError


@pytest.fixture
def folder(host) -> Path:
    """Return a folder inside the host's input folder, with three images of different sizes and captions."""
    path = host.base / "input" / "faces and houses"
    path.mkdir(parents=True, exist_ok=True)
    for file in path.iterdir():
        file.unlink()
    noise = np.random.default_rng(0)
    for name, size, caption in (
        ("a.png", (64, 64), "a face"), ("b.jpg", (100, 80), "an old house"), ("c.webp", (60, 90), "face"),
    ):  # fmt: skip
        Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path / name)
        (path / name).with_suffix(".txt").write_text(caption)
    return path


def with_folder(folder: Path) -> Prompt:
    """Return the main path in miniature with images of a folder, some of which are faces, some houses."""
    prompt = graph()
    prompt["words"]["inputs"]["category"] = "face, house"
    prompt["target"] = node("DomainGalleryLoadImages", folder=folder.name, largest_side=2048)
    prompt["dataset"]["inputs"] |= {"prompts": ["words", 0], "categories": ["target", 1]}
    return prompt


def test_a_folder_of_two_categories_trains(host, folder):
    events: list[Event] = []

    outputs = host.client.run(with_folder(folder), on_event=events.append)

    assert {"target", "similarity"} < outputs["train"]["losses"][0].keys()
    assert len(outputs["show"]["images"]) == 1
    assert any(e.kind == "progress" and e.node == "source" and e.value == e.max == 16 for e in events)


def test_both_sets_of_personalization_train(host):
    prompt = graph()
    prompt["subject words"] = node(
        "DomainGalleryPrompts", clip=["demo", 1], identifier="olis", category="face"
    )
    prompt["subject"] = node("DomainGalleryDemoImages", domain="plain", category="olis", count=2, seed=0)
    prompt["subject data"] = node(
        "DomainGalleryDataset", vae=["demo", 2], source_images=["source", 0], target_images=["subject", 0]
    )
    prompt["erase"]["inputs"]["subject_prompts"] = ["subject words", 0]
    prompt["train"]["class_type"] = "DomainGalleryPersonalize"
    prompt["train"]["inputs"] |= {
        "subject_prompts": ["subject words", 0],
        "subject_dataset": ["subject data", 0],
        "subject_weight": 1.0,
    }

    outputs = host.client.run(prompt)

    assert {"subject", "subject_prior"} < outputs["train"]["losses"][0].keys()


def test_source_images_are_kept_when_the_drawing_is_cancelled(host):
    """What was drawn stays, and the next run draws the rest alone."""
    prompt = {name: graph()[name] for name in ("demo", "words", "source")}
    prompt["source"]["inputs"] |= {"count": 40, "batch_size": 1, "steps": 8, "seed": 12345}
    prompt["show"] = node("PreviewImage", images=["source", 1])

    def kept() -> set[Path]:
        return set((host.output / "domaingallery" / "source").rglob("*.safetensors"))

    before = kept()
    submission = host.client.submit(prompt)
    with pytest.raises(Interrupted), submission:
        for event in submission:
            if event.kind == "progress" and event.node == "source" and event.value and event.value > 40:
                submission.interrupt()
    drawn = kept() - before
    times = {path: path.stat().st_mtime_ns for path in drawn}

    outputs = host.client.run(prompt)

    assert 5 <= len(drawn) < 40
    assert len(kept() - before) == 40
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(outputs["show"]["images"]) == 16  # of those to look at


def test_an_identifier_of_many_tokens_is_warned_about_on_the_node(host):
    prompt = {name: graph()[name] for name in ("demo", "words", "empty", "draw", "decode", "show")}
    prompt["words"]["inputs"]["identifier"] = "a word of many words"
    prompt["draw"]["inputs"]["model"] = ["demo", 0]
    events: list[Event] = []

    host.client.run(prompt, on_event=events.append)

    assert any(e.kind == "text" and e.node == "words" and "at most 3 tokens" in e.text for e in events)


def broken_file(folder: Path) -> None:
    (folder / "b.jpg").write_bytes((folder / "a.png").read_bytes()[:1000])


def no_files(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def small_file(folder: Path) -> None:
    Image.new("RGB", (20, 20)).save(folder / "a.png")


def other_caption(folder: Path) -> None:
    (folder / "a.txt").write_text("a car")


BAD: list[tuple[Any, dict[str, dict[str, Any]], str, str]] = [
    (broken_file, {}, "target", "got 1 that cannot: 'b.jpg'"),
    (no_files, {}, "target", "Expected images in the folder 'faces and houses', got none"),
    (small_file, {}, "source", "(number 1) of about 64 x 64 pixels"),
    (other_caption, {}, "source", "image 1 to be of one of the categories face, house, got none in 'a car'"),
    (
        None,
        {"dataset": {"prompts": None}},
        "source",
        "dataset of the categories face, house, got one without",
    ),
    (None, {"dataset": {"masks": ["mask", 0]}}, "dataset", "a mask for each of the 3 images"),
    (None, {"dataset": {"held_out": 1}}, "dataset", "images to learn from besides 1 held out, got 1"),
    (None, {"source": {"count": 2}}, "source", "at least 3 source images of each category"),
    (None, {"source": {"vae": ["pixels", 0]}}, "source", "Expected the VAE of this model"),
    (None, {"words": {"category": "face, Face"}}, "words", "got 'face' more than once"),
]


@pytest.mark.parametrize(("prepare", "changes", "where", "message"), BAD)
def test_bad_images_are_an_error_on_their_node(host, folder, prepare, changes, where, message):
    prompt = with_folder(folder)
    prompt["mask"] = node("SolidMask", value=1.0, width=64, height=64)
    prompt["pixels"] = node("VAELoader", vae_name="pixel_space")
    for name, inputs in changes.items():
        given = prompt[name]["inputs"] | inputs
        prompt[name]["inputs"] = {key: value for key, value in given.items() if value is not None}
    if prepare is not None:
        prepare(folder)

    with pytest.raises(PromptError) as caught:
        host.client.run(prompt)

    assert message in str(caught.value)
    assert caught.value.node == where
    assert host.alive()
