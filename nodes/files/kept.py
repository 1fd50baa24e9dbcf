"""Kept Training Files: what is kept on disk for going on, with a bound, and a way to see and clear it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ...domaingallery_core.files.writing import LOCK, claimed, clear_leftovers
from ..host.progress import node_id, say
from ..node import Node
from ..sockets import CATEGORY

TRAININGS, SOURCES = "stopped trainings", "source images"
CLEAR = ["nothing", "leftovers", TRAININGS, SOURCES, "everything"]
#: Of trainings that were stopped and never went on, so many remain, the latest.
MOST_TRAININGS = 20
#: Source images take at most so many bytes; those that were not used for the longest time go first.
MOST_BYTES = 20 * 10**9
UNITS = ("bytes", "KB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Kept:
    """Hold a folder that is kept: its files, their size in bytes, and when it was last used."""

    folder: Path
    files: int
    size: int
    used: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return f"{self.folder.name}: {self.files} files, {size_text(self.size)}, {when}"


class DomainGalleryKept(Node):
    """Show and clear what is kept in output/domaingallery."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DomainGalleryKept",
            display_name="Kept Training Files",
            category=CATEGORY,
            description="Shows what is kept in output/domaingallery for going on later: trainings that were "
            "stopped, and source images. Clears what you choose. LoRAs are not touched.",
            search_aliases=["disk space", "cache", "checkpoints", "clean up"],
            is_output_node=True,
            not_idempotent=True,
            inputs=[
                io.Combo.Input(
                    "clear",
                    options=CLEAR,
                    default=CLEAR[0],
                    tooltip="leftovers: what killed programs left half-written. A training that runs, here "
                    "or in another ComfyUI, is never touched.",
                )
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What is there, with sizes.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clear: str) -> io.NodeOutput:
        freed = 0
        for name, root in roots().items():
            for kept in kept_in(root):
                clear_leftovers(kept.folder)
                if clear in (name, "everything"):
                    freed += remove(kept)
        text = report(freed)
        say(node_id(cls), text)
        return io.NodeOutput(text, ui={"text": [text]})


def roots() -> dict[str, Path]:
    """Return where things are kept, by what they are called."""
    base = Path(folder_paths.get_output_directory(), "domaingallery")
    return {TRAININGS: base / "checkpoints", SOURCES: base / "source"}


def kept_in(root: Path) -> list[Kept]:
    """Return the folders with files below a folder, the latest used first; links are not followed."""
    found = []
    folders = [root, *root.rglob("*")] if root.is_dir() else []
    for folder in folders:
        if folder.is_symlink() or not folder.is_dir() or folder == root:
            continue
        with suppress(OSError):
            files = [path for path in folder.iterdir() if path.is_file() and path.name != LOCK]
            if files:
                status = [path.lstat() for path in files]
                used = max(folder.stat().st_mtime, *(each.st_mtime for each in status))
                found.append(Kept(folder, len(files), sum(each.st_size for each in status), used))
    return sorted(found, key=lambda kept: kept.used, reverse=True)


def remove(kept: Kept) -> int:
    """Remove a folder, unless another process has claimed it; return how many bytes that frees."""
    with claimed(kept.folder) as ours:
        if not ours:
            return 0
        for path in kept.folder.iterdir():
            if path.name != LOCK:
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return kept.size


def keep_within_bounds() -> None:
    """Remove what was not used for the longest time, where there is more than is to be kept.

    Trainings that have a name, the run_name of Domain Run Options, stay.
    """
    places = roots()
    unnamed = [kept for kept in kept_in(places[TRAININGS]) if kept.folder.parent == places[TRAININGS]]
    for kept in unnamed[MOST_TRAININGS:]:
        remove(kept)
    sources = kept_in(places[SOURCES])
    for number in range(1, len(sources)):
        if total(sources[: number + 1]) > MOST_BYTES:
            remove(sources[number])


def report(freed: int) -> str:
    """Return what is kept, in lines for the node."""
    lines = [f"cleared {size_text(freed)}"] if freed else []
    for name, root in roots().items():
        kept = kept_in(root)
        lines.append(f"{name}: {len(kept)}, {size_text(total(kept))} in output/domaingallery/{root.name}")
        lines += [f"  {each}" for each in kept[:10]]
        if len(kept) > 10:
            lines.append(f"  and {len(kept) - 10} more")
    return "\n".join(lines)


def total(kept: Iterable[Kept]) -> int:
    return sum(each.size for each in kept)


def size_text(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == UNITS[0] else f"{size:.1f} {unit}"
