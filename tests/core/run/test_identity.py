"""What tells a run from another, and how it is said what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toys import inject, latents, network, part, plan

from domaingallery_core.run.identity import differences, run_identity

PLAN = plan("erasure")
FACES, HOUSES = (part(source=latents(3, seed), name=name) for seed, name in ((1, "faces"), (2, "houses")))


def identity(*parts):
    with inject(network()) as adapter:
        return run_identity(adapter, parts, PLAN, {})


def test_parts_in_another_order_or_of_another_role_are_another_run():
    """They take turns in their order, and each role has terms of its own."""
    expected = identity(FACES, HOUSES)

    assert differences(expected, identity(FACES, HOUSES)) == []
    for parts, now in (
        ([HOUSES, FACES], "houses (domain), faces (domain)"),
        ([FACES, replace(HOUSES, role="subject")], "faces (domain), houses (subject)"),
    ):
        assert differences(expected, identity(*parts)) == [
            f"parts was 'faces (domain), houses (domain)' and is '{now}'"
        ]


@pytest.mark.parametrize(
    ("value", "words"),
    [("x" * 58, f"'{'x' * 58}'"), ("x" * 59, f"'{'x' * 59}..."), ("\n" * 99, "'" + "\\n" * 29 + "\\...")],
)
def test_what_is_long_is_cut(value, words):
    """So that a message stays a line."""
    assert differences({"a": 1}, {"a": value}) == [f"a was 1 and is {words}"]


def test_settings_that_one_of_two_runs_lacks_are_said():
    """As those of a run that an earlier version of the pack began."""
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a was None and is {'b': 1}"]
    assert differences({"a": {"b": 1}}, {}) == ["a was {'b': 1} and is None"]
