"""What is said when the set-up cannot go on: one line, and what to do."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest

import gallery
from gallery import Failure


def test_the_file_compiles_on_pythons_that_are_too_old():
    ast.parse(Path(gallery.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 1), (3, 15, 0)])
def test_another_python_is_refused_with_advice(version):
    with pytest.raises(
        Failure, match=rf"needs Python 3\.11 to 3\.14, not 3\.{version[1]} .*; (use|install) python3"
    ):
        gallery.check_python(version)


def test_a_full_disk_is_told_before_anything_is_made(installers, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2 * gallery.GIGABYTE))

    with pytest.raises(Failure, match=r"needs 7 GB in .*, 2\.0 GB are free"):
        gallery.setup()

    assert installers.steps() == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("error: Failed to fetch\n  cause: dns error", "no network"),
        ("WARNING: Retrying after 'NewConnectionError(...)'\nERROR: No matching distribution", "no network"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("  x No solution found\n  > Because a needs b, it is unsatisfiable.", "Because a needs b"),
        ("note\nerror: the reason\n  hint: try it", "the reason"),
        ("", "no reason given"),
    ],
)
def test_the_reason_of_a_failed_installer_is_one_line(checkout, output, message):
    with pytest.raises(Failure, match=message) as caught:
        gallery.install("get it", [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"])

    assert str(caught.value).startswith("cannot get it: ")
    assert "\n" not in str(caught.value)


def test_failures_and_ctrl_c_end_with_one_line_and_a_status(monkeypatch, capsys):
    for problem, status, line in [
        (Failure("do this"), 2, "gallery.py: do this\n"),
        (KeyboardInterrupt(), 130, "gallery.py: stopped\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "gallery.py: the disk is full; free about 7 GB and run this again\n",
        ),
    ]:

        def setup(option: str | None, problem: BaseException = problem) -> None:
            raise problem

        monkeypatch.setattr(gallery, "setup", setup)

        assert gallery.main(["setup"]) == status
        assert capsys.readouterr().err == line


def test_unknown_arguments_are_an_error_except_for_pytest(capsys):
    with pytest.raises(SystemExit) as caught:
        gallery.main(["serve", "--prot", "1"])

    assert caught.value.code == 2
    arguments, rest = gallery.parser().parse_known_args(["test", "tests/core", "-k", "name", "-x"])
    assert gallery.program(arguments, rest, Path())[2:] == ["tests/core", "-k", "name", "-x"]


def test_without_arguments_the_help_has_an_example_of_each_command(capsys):
    assert gallery.main([]) == 0

    help_text = capsys.readouterr().out
    examples = re.findall(r"^  python3 gallery\.py (.+?)(?:  .*)?$", help_text, re.M)
    assert [example.split()[0] for example in examples] == ["demo", "serve", "test", "setup"]
    for example in examples:  # each is one that the program takes
        arguments, rest = gallery.parser().parse_known_args(example.split())
        assert not rest or arguments.command == "test"
