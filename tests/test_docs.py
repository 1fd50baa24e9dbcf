"""What the documents say of the tests holds."""

from __future__ import annotations

import re

from gallery import PACK

LISTED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (PACK / "docs" / "enhancement.md").read_text("utf-8"))


def test_every_test_that_the_table_of_enhancement_names_exists():
    assert len(LISTED) > 20
    for path, name in LISTED:
        assert re.search(rf"^def {name}\(", (PACK / path).read_text("utf-8"), re.M), f"{path} has no {name}"


def test_every_test_of_composition_is_in_the_table():
    path = "tests/host/test_composition.py"
    tests = re.findall(r"^def (test_\w+)\(", (PACK / path).read_text("utf-8"), re.M)

    assert {(path, name) for name in tests} <= set(LISTED)
