"""The user's host and the cached one: which is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import gallery
from gallery import Failure
from tests.setup.stand_ins import HOST_FILES, make_host, write_archive

VERIFY = gallery.verify  # before the stand-ins replace it


def test_the_host_is_found_in_the_order_option_variable_surroundings(checkout, tmp_path, monkeypatch):
    around = make_host(tmp_path / "around")
    monkeypatch.setattr(gallery, "PACK", around / "custom_nodes" / "domaingallery")
    by_variable, by_option = make_host(tmp_path / "variable"), make_host(tmp_path / "option")

    assert gallery.user_host(None) == around
    monkeypatch.setenv("COMFYUI_PATH", str(by_variable))
    assert gallery.user_host(None) == by_variable
    assert gallery.user_host(str(by_option)) == by_option


def test_without_a_users_host_there_is_none(checkout):
    assert gallery.user_host(None) is None


@pytest.mark.parametrize("version", ["0.29.9", "0.3.75", None])
def test_a_host_that_is_too_old_is_refused(checkout, tmp_path, version):
    with pytest.raises(Failure, match=r"0\.30\.0 or newer is needed; update it"):
        gallery.user_host(str(make_host(tmp_path / "old", version)))


@pytest.mark.parametrize("version", ["0.30.0", "0.31", "1.0.0"])
def test_a_newer_host_is_accepted(checkout, tmp_path, version):
    assert gallery.user_host(str(make_host(tmp_path / "new", version))) == tmp_path / "new"


def test_a_folder_that_is_not_a_host_is_refused(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))

    with pytest.raises(Failure, match=r"COMFYUI_PATH is .*, expected ComfyUI's folder"):
        gallery.user_host(None)


def test_a_file_with_another_checksum_is_refused_and_leaves_nothing(installers, monkeypatch):
    monkeypatch.setattr(gallery, "verify", VERIFY)

    with pytest.raises(Failure, match="not the expected file"):
        gallery.setup()

    assert list(gallery.cache_folder().iterdir()) == []


def test_only_the_hosts_folder_is_unpacked(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz")

    gallery.unpack(archive, gallery.HOST_FOLDER, tmp_path / "out")

    files = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == HOST_FILES.keys()


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({"../../escaped": "x"}, {}),
        ({"..\\escaped": "x"}, {}),
        ({"C:escaped": "x"}, {}),
        ({}, {"link": "/etc"}),
    ],
)
def test_an_archive_with_an_unsafe_entry_is_refused(tmp_path, files, links):
    archive = write_archive(tmp_path / "a.tar.gz", files, links)

    with pytest.raises(Failure, match="unsafe entry"):
        gallery.unpack(archive, gallery.HOST_FOLDER, tmp_path / "deep" / "out")
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name or path.is_symlink()]


def test_a_damaged_cached_host_is_replaced(installers):
    host = gallery.setup()
    (host / "main.py").unlink()

    gallery.setup()

    assert gallery.is_host(host)


def test_a_users_host_gets_no_bytecode(checkout, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)

    assert Path(gallery.bytecode_folder(tmp_path)["PYTHONPYCACHEPREFIX"]).parent == gallery.cache_folder()
    assert gallery.bytecode_folder(gallery.cached_host()) == {}
