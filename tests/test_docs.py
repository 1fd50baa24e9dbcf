"""What the documents say of files, names, commands and tests holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gallery import PACK

PAGES = {
    path.relative_to(PACK).as_posix(): path.read_text("utf-8")
    for pattern in ("*.md", "docs/*.md", "web/docs/*.md", "tests/*/*.md")
    for path in sorted(PACK.glob(pattern))
}
FOLDERS = [
    ".",
    *(
        folder.relative_to(PACK).as_posix()
        for top in ("nodes", "domaingallery_core", "tools", "benchmarks", "tests")
        for folder in [PACK / top, *(PACK / top).rglob("*/")]
    ),
]
TEMPLATES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
LISTED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["docs/enhancement.md"])


def text_in(*pages: str) -> str:
    return "\n".join(PAGES[page] for page in pages or PAGES)


def names_in(path: Path) -> set[str]:
    """Return what a module defines at its top."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        found |= {getattr(t, "name", None) or getattr(getattr(t, "target", t), "id", "") for t in targets}
    return found


def test_the_pages_are_found():
    assert {"README.md", "docs/architecture.md", "web/docs/DomainGalleryTrain.md"} <= PAGES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if not link.startswith(("http://", "https://")):
            target, _, heading = link.partition("#")
            path = (PACK / page).parent / target if target else PACK / page
            assert path.exists(), f"{page}: {link}"
            slugs = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M) if heading else []
            assert not heading or heading in [s.lower().replace(" ", "-") for s in slugs], f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_pack_that_is_named_exists(page):
    tops = "|".join(sorted(path.name for path in PACK.iterdir() if path.is_dir() and path.name[0] != "."))
    for name in re.findall(rf"`((?:{tops})/[\w./ -]*)`", PAGES[page]):
        assert (PACK / name).exists(), f"{page}: {name}"
    for name in re.findall(r"\b(\w+(?:/\w+)*\.py)\b", PAGES[page]):
        found = [folder for folder in FOLDERS if (PACK / folder / name).is_file()]
        assert found, f"{page}: {name}"


def test_every_name_in_a_module_that_is_named_exists():
    named = re.findall(r"`(\w+)\.(?!py`|png`|md`|json`|jpg`|txt`|safetensors`)(\w+)`", text_in())
    assert len(named) >= 5
    for module, name in named:
        paths = [PACK / folder / f"{module}.py" for folder in FOLDERS]
        assert any(name in names_in(path) for path in paths if path.is_file()), f"{module}.{name}"


def test_every_command_exists_with_its_options():
    commands = re.findall(r"python3? (-m )?([\w./]+)((?: (?:--)?[\w.]+)*)", text_in())
    assert len(commands) >= 8
    for module, name, arguments in commands:
        place = PACK / (name.replace(".", "/") if module else name)
        path = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        source = path.read_text("utf-8")
        words = [] if module else arguments.split()[:1]  # what gallery.py is told to do
        for word in [*words, *re.findall(r"--\w+", arguments)]:
            assert f'"{word}"' in source, f"{name} {word}"


def test_every_template_that_is_named_exists():
    named = re.findall(r"\*(\d\d [a-z][\w ]+)\*|^\| (\d\d [a-z][^|]*) \|", text_in(), re.M)

    assert {a or b for a, b in named} == set(TEMPLATES)


def test_the_tree_of_the_architecture_holds_every_module():
    tree = PAGES["docs/architecture.md"].split("```")[1]
    for folder in ("nodes", "domaingallery_core"):
        modules = {path.name for path in (PACK / folder).rglob("*.py")} - {"__init__.py"}
        assert modules <= set(re.findall(r"\w+\.py", tree)), folder


def test_every_test_that_the_table_of_enhancement_names_exists():
    assert len(LISTED) > 20
    for path, name in LISTED:
        assert re.search(rf"^def {name}\(", (PACK / path).read_text("utf-8"), re.M), f"{path} has no {name}"


@pytest.mark.parametrize("name", ["composition", "conditionings"])
def test_every_test_of_composition_is_in_the_table(name):
    path = f"tests/nodes/draw/test_{name}.py"
    tests = re.findall(r"^def (test_\w+)\(", (PACK / path).read_text("utf-8"), re.M)

    assert tests and {(path, test) for test in tests} <= set(LISTED)
