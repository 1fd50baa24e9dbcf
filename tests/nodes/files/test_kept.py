"""What is kept on disk has a bound, and can be seen and cleared, and nothing else is touched."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def kept(nodes, output):
    """Return the module, with two stopped trainings, one of them named, and two sets of source images."""
    base = output / "domaingallery"
    for number, name in enumerate(
        ("checkpoints/a_sks_face-1", "checkpoints/mine/erasure", "source/abc", "source/def")
    ):
        (base / name).mkdir(parents=True)
        (base / name / "step_000001.safetensors").write_bytes(b"x" * 1000 * (number + 1))
    (output / "loras").mkdir()
    (output / "loras" / "sketch.safetensors").write_bytes(b"x")
    (base / "source" / "abc" / ".step.part").write_bytes(b"x")
    os.utime(base / "source" / "abc" / ".step.part", (0, 0))
    return nodes("nodes.files.kept")


def names(output):
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


EVERYTHING = [
    "domaingallery/checkpoints/a_sks_face-1/step_000001.safetensors",
    "domaingallery/checkpoints/mine/erasure/step_000001.safetensors",
    "domaingallery/source/abc/step_000001.safetensors",
    "domaingallery/source/def/step_000001.safetensors",
    "loras/sketch.safetensors",
]


@pytest.mark.parametrize(
    ("clear", "left"),
    [
        ("leftovers", EVERYTHING),
        ("nothing", EVERYTHING),
        ("stopped trainings", EVERYTHING[2:]),
        ("source images", [*EVERYTHING[:2], EVERYTHING[4]]),
        ("everything", EVERYTHING[4:]),
    ],
)
def test_what_is_chosen_is_cleared(kept, output, clear, left):
    out = kept.DomainGalleryKept.execute(clear)

    assert names(output) == left
    assert out.ui["text"] == [out[0]]
    if clear == "nothing":
        assert "stopped trainings: 2, 3.0 KB in output/domaingallery/checkpoints" in out[0]
        assert "  erasure: 1 files, 2.0 KB" in out[0] and "source images: 2, 7.0 KB" in out[0]
    elif clear == "everything":
        assert out[0].startswith("cleared 10.0 KB") and "source images: 0, 0 bytes" in out[0]


def test_what_is_in_use_and_what_links_lead_to_is_not_touched(kept, output, nodes, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").write_bytes(b"x")
    (output / "domaingallery" / "source" / "link").symlink_to(elsewhere)
    (output / "domaingallery" / "source" / "abc" / "link").symlink_to(elsewhere)

    with nodes("domaingallery_core.files.writing").claimed(
        output / "domaingallery/checkpoints/a_sks_face-1"
    ) as ours:
        assert ours
        kept.DomainGalleryKept.execute("everything")

    assert (elsewhere / "precious").exists()
    assert EVERYTHING[0] in names(output) and EVERYTHING[1] not in names(output)


def test_the_latest_trainings_remain_and_named_ones(kept, output):
    folder = output / "domaingallery" / "checkpoints"
    for number in range(30):
        (folder / f"run-{number:02}").mkdir()
        path = folder / f"run-{number:02}" / "step_000001.safetensors"
        path.write_bytes(b"x")
        for each in (path, path.parent):
            os.utime(each, (number, number))

    kept.keep_within_bounds()

    left = sorted(path.name for path in folder.iterdir())
    assert left == ["a_sks_face-1", "mine", *(f"run-{number}" for number in range(11, 30))]


def test_source_images_that_were_not_used_go_first(kept, output, monkeypatch):
    folder = output / "domaingallery" / "source"
    os.utime(folder / "def", (9, 9))
    os.utime(folder / "def" / "step_000001.safetensors", (9, 9))
    monkeypatch.setattr(kept, "MOST_BYTES", 100)

    kept.keep_within_bounds()

    assert [path.name for path in folder.iterdir()] == ["abc"]
