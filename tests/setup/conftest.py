"""What the tests of the set-up share: a checkout of their own, and stand-ins for the installers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gallery
from tests.setup.stand_ins import Installers


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """An own checkout and cache for the functions of gallery.py, without a user's host."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(gallery.PACK / "pyproject.toml", folder)
    venv = folder / ".venv"
    places = {
        "PACK": folder,
        "VENV": venv,
        "STAMP": venv / gallery.STAMP.name,
        "UNFINISHED": venv / gallery.UNFINISHED.name,
        "LOG": folder / gallery.LOG.name,
    }
    for name, value in places.items():
        monkeypatch.setattr(gallery, name, value)
    monkeypatch.setattr(gallery, "cache_folder", lambda: tmp_path / "cache" / "domaingallery")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return folder


@pytest.fixture
def installers(checkout, monkeypatch) -> Installers:
    stub = Installers(checkout / ".venv")
    monkeypatch.setattr(gallery, "install", stub.install)
    monkeypatch.setattr(gallery, "works", stub.works)
    monkeypatch.setattr(gallery, "uv_environment", dict)
    monkeypatch.setattr(gallery, "verify", lambda file, sha256: None)
    return stub
