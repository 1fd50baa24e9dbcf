"""Modules and rooms depend on each other one way, and the core on no host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from gallery import PACK

TOPS = ("nodes", "domaingallery_core", "tools")
Name = tuple[str, ...]


def imported(path: Path) -> Iterator[Name]:
    """Yield what a module imports of the pack, as paths from its top."""
    package = path.relative_to(PACK).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                yield target if not found((*target, alias.name)) else (*target, alias.name)
        elif isinstance(node, ast.Import):  # never of the pack: `import nodes` is the host's
            yield from ((alias.name.split(".")[0],) for alias in node.names if alias.name != "nodes")


def found(name: Name) -> Path | None:
    """Return the file of a module of the pack."""
    if not name or name[0] not in TOPS:
        return None
    path = PACK.joinpath(*name)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def arrows() -> dict[Path, set[Path]]:
    """Return which modules each module imports, at its top or in a function."""
    modules = [path for top in TOPS for path in sorted((PACK / top).rglob("*.py"))]
    return {
        path: {other for name in imported(path) if (other := found(name)) and other != path}
        for path in modules
    }


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return ways that lead back to where they begin."""
    ways: list[list[str]] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            ways.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                follow(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        follow(name, [])
    return ways


def room(path: Path) -> str:
    """Return the room of a module: the folder below the top, or the top itself."""
    return "/".join(path.relative_to(PACK).parent.parts[:2])


def between(top: str) -> dict[str, set[str]]:
    """Return the arrows between the rooms of a top."""
    rooms: dict[str, set[str]] = {}
    for path, others in arrows().items():
        for other in others:
            one, two = room(path), room(other)
            if one != two and "/" in one and "/" in two and {one.split("/")[0], two.split("/")[0]} == {top}:
                rooms.setdefault(one, set()).add(two)
    return rooms


def test_no_module_is_imported_by_what_it_imports():
    graph = {str(path): {str(other) for other in others} for path, others in arrows().items()}

    assert len(graph) > 100
    assert cycles(graph) == []


@pytest.mark.parametrize("top", TOPS)
def test_arrows_between_rooms_go_one_way(top):
    assert between(top)
    assert cycles(between(top)) == []


def test_the_core_imports_no_node_and_no_host():
    for path, others in arrows().items():
        if path.relative_to(PACK).parts[0] == "domaingallery_core":
            assert all(other.relative_to(PACK).parts[0] == "domaingallery_core" for other in others), path
            assert not any(name[0] in ("comfy", "comfy_api", "folder_paths") for name in imported(path)), path


def test_a_cycle_is_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_picture_of_the_rooms_is_the_code():
    """Each line of the picture is a room and those that it reads."""
    page = (PACK / "docs" / "architecture.md").read_text("utf-8")
    lines = page.split("```rooms\n")[1].split("```")[0].splitlines()
    pictured = {line.split(" -> ")[0].strip(): set(line.split(" -> ")[1].split(", ")) for line in lines}

    assert pictured == {one: others for top in TOPS for one, others in between(top).items()}
