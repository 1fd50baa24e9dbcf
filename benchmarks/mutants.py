"""Change the code in small ways and see whether a test notices: python -m benchmarks.mutants --host COMFYUI

First every test of the core and of the nodes in this process is run once, to know which lines it reads
(--map, kept in a file). Then mutants are made at random: a comparison, a number, an operator, a condition, an
argument or a statement is another one or left out. Each is run in a process of its own with the tests that
read its line, the quickest first. Printed are those that no test noticed. Needs the package coverage.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.host.tiny  # noqa: F401  before the host's own `tests` can be found
from benchmarks.unet_denoiser import find_host

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    *sorted((ROOT / "domaingallery_core").glob("*.py")),
    *(
        ROOT / "nodes" / f"{name}.py"
        for name in ("host", "guidance", "source_images", "training", "datasets")
    ),
]
TESTS = ["tests/core", "tests/host"]
#: These start hosts of their own, or would try for too long.
LEFT_OUT = ("real_", "thin_checkpoints", "closing", "faults", "fuzz", "killed")
#: At most so many tests, and so many seconds of them, look at a mutant.
MOST_TESTS, MOST_SECONDS = 60, 10.0
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or,
    ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """Name a change: in a file, at a line, from a text to another."""

    file: Path
    line: int
    last: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.before!r} -> {self.after!r}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument(
        "--map", type=Path, required=True, help="where it is kept which tests read which lines"
    )
    parser.add_argument("--first", type=int, default=0, help="how many are passed over")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose name has this in it")
    arguments = parser.parse_args()
    enter(find_host(arguments.host))
    if not arguments.map.exists():
        in_child(lambda: read_lines(arguments.map), 3600)
    known = json.loads(arguments.map.read_text())
    mutants = [m for file in FILES if arguments.only in file.name for m in mutants_of(file)]
    random.Random(arguments.seed).shuffle(mutants)
    ends: Counter[str] = Counter()
    chosen = mutants[arguments.first : arguments.first + arguments.count]
    for number, mutant in enumerate(chosen, 1):
        end = tried(mutant, known)
        ends[end] += 1
        if end != "killed":
            print(f"{end}: {mutant}", flush=True)
        if number % 50 == 0:
            print(f"  {number} of {len(mutants)}: {dict(ends)}", flush=True)
    print(f"{len(mutants)} mutants, tried {ends.total()}: {dict(ends)}")
    return 0


def enter(host: Path) -> None:
    """Import the host, so that each mutant begins with it; nothing of the pack."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(host))
    for name in [name for name in sys.modules if name.startswith("domaingallery_core")]:
        del sys.modules[name]  # or a mutant would not be read
    importlib.import_module("comfy.cli_args").args.cpu = True
    for name in (
        "nodes",
        "comfy.sd",
        "comfy.samplers",
        "comfy.model_base",
        "folder_paths",
        "peft",
        "hypothesis",
    ):
        importlib.import_module(name)


def in_child(call: Any, seconds: float) -> int:
    """Call something in a child process; return its exit status, or -1 after some seconds."""
    pid = os.fork()
    if pid == 0:
        status = 3
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = int(call() or 0)
        os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


class Lines:
    """A pytest plugin that keeps which lines each test reads, and how long it takes."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds = coverage, dict[str, float]()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def read_lines(place: Path) -> None:
    """Run the tests once; keep their seconds, and the tests of each line of each file."""
    coverage = importlib.import_module("coverage").Coverage(data_file=None, include=[str(f) for f in FILES])
    plugin = Lines(coverage)
    coverage.start()
    left_out = " and ".join(f"not {name}" for name in LEFT_OUT)
    pytest.main(["-q", "-p", "no:cacheprovider", "-k", left_out, *TESTS], plugins=[plugin])
    coverage.stop()
    data = coverage.get_data()
    lines = {
        str(file.relative_to(ROOT)): {
            line: sorted(set(tests) & plugin.seconds.keys())
            for line, tests in data.contexts_by_lineno(str(file)).items()
        }
        for file in FILES
    }
    place.write_text(json.dumps({"seconds": plugin.seconds, "lines": lines}))


def tried(mutant: Mutant, known: dict[str, Any]) -> str:
    """Return how the tests found a mutant: "killed", "timeout", "survived", or "not read" by any of them."""
    lines, seconds = known["lines"][str(mutant.file.relative_to(ROOT))], known["seconds"]
    tests = {test for line in range(mutant.line, mutant.last + 1) for test in lines.get(str(line), ())}
    if not tests:  # it is read when the file is
        tests = {test for found in lines.values() for test in found}
    if not tests:
        return "not read"
    chosen, total = [], 0.0
    for test in sorted(tests, key=seconds.__getitem__)[:MOST_TESTS]:
        total += seconds[test]
        if total > MOST_SECONDS and chosen:
            break
        chosen.append(test)

    def run() -> int:
        with changed(mutant):
            return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *chosen]))

    status = in_child(run, 4 * total + 30)
    return {0: "survived", -1: "timeout"}.get(status, "killed")


@contextlib.contextmanager
def changed(mutant: Mutant) -> Iterator[None]:
    """Return a context in which a file is imported with the change."""
    loader = importlib.machinery.SourceFileLoader
    usual = loader.get_code

    def get_code(self: Any, name: str) -> Any:
        if Path(self.path).resolve() == mutant.file:
            return compile(mutant.source, self.path, "exec")
        return usual(self, name)

    loader.get_code = get_code  # type: ignore[method-assign]
    yield


def mutants_of(file: Path) -> list[Mutant]:
    """Return every change of a file that still compiles."""
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    content, found = text.encode(), []
    for node, after in changes(ast.parse(text)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        source = (content[:begin] + after.encode() + content[end:]).decode()
        with contextlib.suppress(SyntaxError):
            compile(source, str(file), "exec")
            before = content[begin:end].decode()
            if before != after:
                found.append(Mutant(file, node.lineno, node.end_lineno, before, after, source))
    return found


def changes(tree: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield nodes, each with a text in its place. What is said to a user, and types, are left alone."""
    for node in walk(tree):
        if isinstance(node, ast.Compare | ast.BoolOp | ast.BinOp):
            operator = node.ops[0] if isinstance(node, ast.Compare) else node.op
            if type(operator) in SWAPS:
                other = copy.deepcopy(node)
                swapped = SWAPS[type(operator)]()
                if isinstance(other, ast.Compare):
                    other.ops[0] = swapped
                else:
                    other.op = swapped
                yield node, f"({ast.unparse(other)})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield node, f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.Constant) and not isinstance(node.value, str | bytes | type(...) | None):
            value = node.value
            yield node, repr(not value if isinstance(value, bool) else value + 1)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node.test, "True"
            yield node.test, "False"
        elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) or isinstance(node, ast.Raise):
            yield node, "pass"
        elif isinstance(node, ast.Return) and node.value is not None:
            yield node, "return None"
        elif isinstance(node, ast.Assign | ast.AugAssign):
            yield node.value, "None"
        elif isinstance(node, ast.Break):
            yield node, "continue"
        elif isinstance(node, ast.Continue):
            yield node, "break"
        elif isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg:
            other = copy.deepcopy(node)
            other.keywords.pop()
            yield node, ast.unparse(other)


def walk(node: ast.AST) -> Iterator[Any]:
    """Yield what can be changed below a node."""
    for child in ast.iter_child_nodes(node):
        message = isinstance(node, ast.Raise) or isinstance(child, ast.JoinedStr)
        if message or (isinstance(node, ast.AnnAssign | ast.arg) and child is node.annotation):
            continue
        if isinstance(node, ast.FunctionDef) and child is node.returns:
            continue
        if isinstance(child, ast.Call) and ast.unparse(child.func).startswith(("io.", "log.", "dataclass")):
            continue
        yield child
        yield from walk(child)


if __name__ == "__main__":
    raise SystemExit(main())
