"""Damaged and strange files: those that are read from the input folder, and those that are kept."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from tests.nodes.fuzz.running import Fuzz
from tests.nodes.fuzz.values import Made, tensors

KINDS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")
MODES = {"PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"), "TIFF": ("RGB", "F", "I", "CMYK", "L"),
         "JPEG": ("RGB", "L", "CMYK")}  # fmt: skip


def picture(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """Return a picture as a file of a kind."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def huge() -> bytes:
    """Return a PNG that says that it is very large, and is not."""
    content = bytearray(picture("PNG", "L", (8, 8)))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


PICTURES = st.one_of(
    st.sampled_from(KINDS).flatmap(
        lambda kind: st.builds(
            picture, st.just(kind), st.sampled_from(MODES.get(kind, ("RGB", "L"))),
            st.tuples(st.sampled_from([1, 7, 8, 64, 300]), st.sampled_from([1, 8, 65])),
        )
    ),
    st.just(huge()),
)  # fmt: skip


def damaged(good: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Return contents as they are, cut off, with other bytes in them, or something else."""

    def changed(content: bytes) -> SearchStrategy[bytes]:
        place = st.integers(0, max(len(content) - 1, 0))
        return st.one_of(
            st.just(content),
            st.builds(lambda i: content[:i], place),
            st.builds(
                lambda i, new: content[:i] + new + content[i + len(new) :],
                place,
                st.binary(min_size=1, max_size=9),
            ),
            st.builds(
                lambda i, new: content[:i] + new + content[i:], place, st.binary(min_size=1, max_size=9)
            ),
            st.binary(max_size=64),
        )

    return good.flatmap(changed)


NAMES = st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


class Files:
    """Put files where nodes read them, and run the nodes."""

    def __init__(self, fuzz: Fuzz, output: Path) -> None:
        self.fuzz, self.output = fuzz, output
        self.run_options = fuzz.nodes("nodes.sockets").RunOptions(
            checkpoint_every=1, run_name="fuzz", preview_every=1, preview_count=1, preview_steps=1
        )
        self.expected = self._train().result[0]
        self.kept = sorted((output / "domaingallery" / "checkpoints" / "fuzz").rglob("*.safetensors"))
        self.checkpoints = [path.read_bytes() for path in self.kept]
        self.drawn = self._draw().result[0][0].latents
        self.latents = sorted((output / "domaingallery" / "source").rglob("*.safetensors"))
        self.latent = self.latents[0].read_bytes()

    def kinds(self) -> dict[str, tuple[SearchStrategy[Any], Callable[[Any], tuple[str, str]]]]:
        """Return what there is to try: contents, and what reads them, by name."""
        core = self.fuzz.nodes("domaingallery_core.run.checkpoints")
        files = self.fuzz.nodes("domaingallery_core.files.writing")
        json_values = st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
            ),
        )
        good, _ = files.load_tensors(self.kept[-1])
        names = st.one_of(st.sampled_from([*good]), st.text(max_size=12))
        header = json.loads(files.load_tensors(self.kept[-1])[1][core.HEADER])
        headers = st.one_of(
            json_values,
            st.builds(lambda key, value: header | {key: value}, st.sampled_from(sorted(header)), json_values),
            st.builds(
                lambda key, value: header | {"numbers": header["numbers"] | {key: value}},
                st.sampled_from(sorted(header["numbers"])), json_values,
            ),
        )  # fmt: skip
        contents = st.tuples(
            st.dictionaries(names, st.one_of(tensors(4, 32), st.none()), max_size=3), headers
        )
        pictures = st.lists(
            st.tuples(
                NAMES,
                st.sampled_from([".png", ".jpg", ".tif", ".webp"]),
                damaged(PICTURES),
                st.one_of(st.none(), st.binary(max_size=20)),
            ),
            min_size=1,
            max_size=3,
        )
        return {
            "pictures": (pictures, self.read_pictures),
            "checkpoint": (damaged(st.sampled_from(self.checkpoints)), self.resume),
            "sound checkpoint of something else": (contents, self.resume_odd),
            "latent": (damaged(st.just(self.latent)), self.redraw),
            "drawing.json": (
                st.one_of(
                    st.binary(max_size=30),
                    json_values.map(lambda v: json.dumps(v).encode()),
                    json_values.map(lambda v: json.dumps({"batch_size": v}).encode()),
                ),
                self.redraw_as,
            ),
        }

    def read_pictures(self, files: list[tuple[str, str, bytes, bytes | None]]) -> tuple[str, str]:
        folder = Path(folder_paths.get_input_directory(), "fuzzed")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, suffix, content, caption in files:
            (folder / f"{name}{suffix}").write_bytes(content)
            if caption is not None:
                (folder / f"{name}{suffix}").with_suffix(".txt").write_bytes(caption)
        node = self.fuzz.classes["DomainGalleryLoadImages"]
        return self.fuzz.ended(lambda: node.execute(folder="fuzzed", largest_side=512))

    def resume(self, content: bytes) -> tuple[str, str]:
        for path, sound in zip(self.kept, self.checkpoints, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sound)
        self.kept[-1].write_bytes(content)
        return self.fuzz.ended(self._same_lora)

    def resume_odd(self, contents: tuple[dict[str, Made | None], Any]) -> tuple[str, str]:
        files, core = (
            self.fuzz.nodes("domaingallery_core.files.writing"),
            self.fuzz.nodes("domaingallery_core.run.checkpoints"),
        )
        self.kept[-1].parent.mkdir(parents=True, exist_ok=True)
        self.kept[-1].write_bytes(self.checkpoints[-1])
        tensors, metadata = files.load_tensors(self.kept[-1])
        for name, value in contents[0].items():
            if value is None:
                tensors.pop(name, None)
            else:
                tensors[name] = self.fuzz.make(value)
        try:
            files.save_tensors(self.kept[-1], tensors, metadata | {core.HEADER: json.dumps(contents[1])})
        except Exception:
            return "cannot be written", ""
        return self.fuzz.ended(lambda: self._train())

    def redraw(self, content: bytes) -> tuple[str, str]:
        self.latents[0].parent.mkdir(parents=True, exist_ok=True)
        self.latents[0].write_bytes(content)
        return self.fuzz.ended(self._same_drawing)

    def redraw_as(self, content: bytes) -> tuple[str, str]:
        self.latents[0].parent.mkdir(parents=True, exist_ok=True)
        (self.latents[0].parent / "drawing.json").write_bytes(content)
        return self.fuzz.ended(self._same_drawing)

    def _same_lora(self) -> Any:
        found = self._train()
        if any(not torch.equal(value, found.result[0][name]) for name, value in self.expected.items()):
            raise AssertionError("another LoRA")
        return found

    def _same_drawing(self) -> Any:
        found = self._draw()
        if not torch.allclose(found.result[0][0].latents, self.drawn):
            raise AssertionError("other source images")
        return found

    def _train(self) -> Any:
        return self._node("DomainGalleryTrain", run_options=self.run_options)

    def _draw(self) -> Any:
        return self._node("DomainGallerySourceImages", batch_size=0)

    def _node(self, name: str, **changes: Any) -> Any:
        node = self.fuzz.classes[name]
        inputs = [part for part in node.define_schema().inputs if not part.optional or part.id == "options"]
        made = {part.id: self.fuzz.make(self.fuzz.good(part)) for part in inputs}
        with torch.inference_mode():
            return node.execute(**{**made, **changes})
