"""What the registry gets: it passes the registry's own checks, is small and whole, and has no dead links."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gallery import PACK
from tools.make.emblem import make_banner, make_icon

REPOSITORY = "https://github.com/domaingallery/domaingallery"
#: Where links of the archive's pages lead to what is in the repository alone.
IN_REPOSITORY = (
    f"{REPOSITORY}/blob/main/",
    "https://raw.githubusercontent.com/domaingallery/domaingallery/main/",
)
MOST = 11 * 10**6
#: What the registry's standards forbid, or look into: programs, packages, the network, code in data.
UNWANTED = {"subprocess", "ctypes", "pickle", "marshal", "socket", "urllib", "requests", "http", "pip"}


def comfy_node(command: str, folder: Path, home: Path) -> str:
    """Return what comfy-cli says to a command in a folder; it calls nobody, and writes into `home`."""
    quiet = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "DO_NOT_TRACK": "1", "COMFY_NO_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", command],
        cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of all files that git knows here, as they are now."""
    folder = tmp_path_factory.mktemp("checkout") / "domaingallery"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PACK, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (PACK / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PACK / name).read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive that would be published."""
    comfy_node("pack", checkout, tmp_path_factory.mktemp("home"))
    return checkout / "node.zip"


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an installed archive."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "domaingallery"
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


def test_the_registry_s_validation_passes_without_a_warning(checkout, tmp_path):
    said = comfy_node("validate", checkout, tmp_path)

    assert "All validation checks passed" in said
    assert "Warning" not in said and "Security warnings" not in said


def test_the_archive_is_small_and_holds_what_the_pack_needs_and_no_more(archive):
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())

    assert archive.stat().st_size <= MOST
    tops = {name.split("/")[0] for name in names}
    known = {
        "CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "domaingallery_core", "nodes",
        "pyproject.toml", "requirements.txt", "web", "workflows",
    }  # fmt: skip
    assert known <= tops <= known | {"subgraphs", "locales"}
    for folder in ("domaingallery_core", "nodes", "web", "workflows"):
        here = {path.relative_to(PACK).as_posix() for path in (PACK / folder).rglob("*") if path.is_file()}
        assert {name for name in here if "__pycache__" not in name} == {
            n for n in names if n.startswith(f"{folder}/")
        }


def test_an_installed_archive_loads_as_it_is(unpacked, pack):
    """Nothing in it needs what is left out; the nodes are those of the repository."""
    import asyncio

    name = str(unpacked).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, unpacked / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def ids(package):
        extension = asyncio.run(package.comfy_entrypoint())
        return [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]

    assert ids(module) == ids(pack)


def links_of(page: str) -> list[str]:
    """Return where the links of a page lead, inline ones and those by reference."""
    return re.findall(r"\]\(([^)\s]+)\)", page) + re.findall(r"^\[[^\]]+\]: (\S+)$", page, re.M)


def test_no_link_in_the_archive_is_dead(unpacked):
    """Relative ones lead to files of the archive, those into the repository to files that it has."""
    pages = {path: path.read_text("utf-8") for path in unpacked.rglob("*.md")}
    found = [(path, link) for path, page in pages.items() for link in links_of(page)]
    assert len(found) > 8
    for path, link in found:
        inside = next((start for start in IN_REPOSITORY if link.startswith(start)), None)
        if inside is not None:
            assert (PACK / link.removeprefix(inside)).is_file(), f"{path.name}: {link}"
        elif not link.startswith(("http://", "https://")):
            target = link.partition("#")[0]
            assert not target or (path.parent / target).exists(), f"{path.name}: {link}"


def test_every_reference_in_the_readme_is_defined():
    page = (PACK / "README.md").read_text("utf-8")
    defined = set(re.findall(r"^\[([^\]]+)\]: ", page, re.M))

    assert set(re.findall(r"\]\[([^\]]+)\]", page)) == defined


def test_nothing_in_the_archive_runs_programs_or_reaches_out(unpacked):
    """So say the registry's standards: no eval, no exec, no packages installed, nothing fetched."""
    for path in unpacked.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]} if not node.level else set()
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                names = {called} & {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
                assert not names, f"{path.name}: {called}"
                continue
            else:
                continue
            assert not names & UNWANTED, f"{path.name}: {names & UNWANTED}"


def test_the_project_file_says_all_that_the_registry_shows():
    project = tomllib.loads((PACK / "pyproject.toml").read_text("utf-8"))
    comfy, about = project["tool"]["comfy"], project["project"]

    assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui", "includes"}
    assert re.fullmatch(r"[a-z][a-z0-9]*(?:[-._][a-z0-9]+)*", about["name"]) and "comfy" not in about["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"]) and about["description"] and about["license"]
    assert about["urls"]["Repository"] == REPOSITORY
    for name, ratio, most in (("Icon", 1, 400), ("Banner", 21 / 9, 2000)):
        path = PACK / comfy[name].removeprefix(IN_REPOSITORY[1])
        with Image.open(path) as image:
            assert image.width <= most and image.width / image.height == pytest.approx(ratio, abs=0.01)
            assert path.stat().st_size < 200_000


def test_icon_and_banner_are_those_that_are_drawn_again():
    """The letters depend on the library that sets them; the pictures are the same everywhere."""
    folder = PACK / "docs" / "registry"
    left = 3 * 64 * 3  # where the pictures of the banner begin

    assert np.array_equal(np.asarray(Image.open(folder / "icon.png").convert("RGB")), np.asarray(make_icon()))
    banner = np.asarray(Image.open(folder / "banner.png").convert("RGB"))
    assert np.array_equal(banner[:, left:], np.asarray(make_banner())[:, left:])
