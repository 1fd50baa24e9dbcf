"""Change the code in small ways and see whether a test notices: python -m benchmarks.mutants --host COMFYUI

First every test of the core and of the nodes in this process is run once, to know which lines it reads
(--map, kept in a file). Then mutants are made, in a random order: a comparison, a number, an operator, a
condition, an argument or a statement is another one or left out. Each is tried in a process of its own with
the tests that read its line, the quickest first; outside of functions, with the tests of its room. Printed
are those that no test noticed. Needs the package coverage.

A process is a copy of one in which all tests are collected already. A function gets its changed code there;
what is changed outside of functions is imported anew, which takes longer.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.nodes.tiny  # noqa: F401  before the host's own `tests` can be found
from benchmarks.unet_denoiser import find_host

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    *(f for f in sorted((ROOT / "domaingallery_core").rglob("*.py")) if f.parent.name != "sketchbook"),
    *(
        ROOT / "nodes" / f"{name}.py"
        for name in ("host/model", "draw/guidance", "data/source_images", "train/training", "data/dataset")
    ),
]
TESTS = ["tests/core", "tests/nodes"]
#: These start hosts of their own, or would try for too long.
LEFT_OUT = ("real_", "thin_checkpoints", "closing", "faults", "fuzz", "killed")
LEFT = " and ".join(f"not {name}" for name in LEFT_OUT)
#: Exit statuses of a trial.
FAILED, NOT_READ = 3, 40
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
    """Name a change: in a file, at a line, from a text to another.

    Attributes:
        source: the whole file with the change.
        function: qualified name and first line of the function around it; None outside of functions.
    """

    file: Path
    line: int
    last: int
    before: str
    after: str
    source: str
    function: tuple[str, int] | None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.before!r} -> {self.after!r}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument(
        "--map", type=Path, default=Path("mutants.json"), help="where it is kept which tests read which lines"
    )
    parser.add_argument("--first", type=int, default=0, help="how many are passed over")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[""], help="files whose path has one of these in it")
    parser.add_argument("--again", type=Path, help="try those alone that a file with what was printed names")
    parser.add_argument("--tests", nargs="*", help="try with these test files or tests, and without a map")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at once")
    arguments = parser.parse_args()
    enter(find_host(arguments.host))
    with tempfile.TemporaryDirectory() as folder:
        # Where other pytests do not clean up: without its folder every test fails, and nothing survives.
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        return tried(arguments)


def tried(arguments: argparse.Namespace) -> int:
    """Try mutants as the arguments say."""
    if not arguments.map.exists() and not arguments.tests:
        list(in_children([(0, lambda: read_lines(arguments.map), 3600.0)], 1))
    known = {} if arguments.tests else json.loads(arguments.map.read_text())
    mutants = [
        m for file in FILES if any(only in str(file) for only in arguments.only) for m in mutants_of(file)
    ]
    if arguments.again:
        printed = {line.partition(": ")[2] for line in arguments.again.read_text().splitlines()}
        mutants = [mutant for mutant in mutants if str(mutant) in printed]
    random.Random(arguments.seed).shuffle(mutants)
    chosen = mutants[arguments.first : arguments.first + arguments.count]
    trial = Trial(known, arguments.jobs, len(chosen), arguments.tests)
    trial.imported([mutant for mutant in chosen if mutant.function is None])
    trial.collected([mutant for mutant in chosen if mutant.function is not None])
    print(f"{len(mutants)} mutants, tried {trial.ends.total()}: {dict(trial.ends)}")
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


Call = tuple[Any, Callable[[], Any], float]


def in_children(calls: Iterable[Call], jobs: int) -> Iterator[tuple[Any, int]]:
    """Call things in child processes, some at once; yield the key of each and its exit status.

    Args:
        calls: key, what to call, and the seconds after which it is killed, with the status -1.
    """
    waiting, running = iter(calls), dict[int, tuple[Any, float]]()
    more = True
    while more or running:
        while more and len(running) < jobs:
            call = next(waiting, None)
            more = call is not None
            if call is not None:
                running[_forked(call[1])] = call[0], time.monotonic() + call[2]
        for pid, (key, until) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                yield key, os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                yield key, -1
            else:
                continue
            del running[pid]
        time.sleep(0.005)


def _forked(call: Callable[[], Any]) -> int:
    """Call something in a child process, whose exit status is what it returns; return its number."""
    pid = os.fork()
    if pid == 0:
        status = FAILED
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = int(call() or 0)
        os._exit(status)
    return pid


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
    pytest.main(["-q", "-p", "no:cacheprovider", "-k", LEFT, *TESTS], plugins=[plugin])
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


class Trial:
    """Try mutants, and print those that no test notices."""

    def __init__(self, known: dict[str, Any], jobs: int, total: int, tests: list[str] | None) -> None:
        self.known, self.jobs, self.total, self.tests = known, jobs, total, tests
        self.ends: Counter[str] = Counter()

    def tests_of(self, mutant: Mutant) -> tuple[list[str], float]:
        """Return the tests that look at a mutant, the quickest first, and the seconds that they take."""
        if self.tests is not None:
            return self.tests, 60.0
        lines, seconds = self.known["lines"][str(mutant.file.relative_to(ROOT))], self.known["seconds"]
        tests = {test for line in range(mutant.line, mutant.last + 1) for test in lines.get(str(line), ())}
        most, longest = MOST_TESTS, MOST_SECONDS
        if mutant.function is None:  # it is read when the file is, which no test does
            room = tests_beside(mutant.file)
            tests, most, longest = {test for test in seconds if test.startswith(room)}, 1000, 30.0
        chosen, total = [], 0.0
        for test in sorted(tests, key=seconds.__getitem__)[:most]:
            total += seconds[test]
            if total > longest and chosen:
                break
            chosen.append(test)
        return chosen, total

    def end(self, mutant: Mutant, status: int) -> None:
        """Note how a mutant ended."""
        end = {0: "survived", -1: "timeout", NOT_READ: "not read"}.get(status, "killed")
        self.ends[end] += 1
        if end != "killed":
            print(f"{end}: {mutant}", flush=True)
        if self.ends.total() % 50 == 0:
            print(f"  {self.ends.total()} of {self.total}: {dict(self.ends)}", flush=True)

    def imported(self, mutants: Iterable[Mutant]) -> None:
        """Try mutants in processes that import the pack, changed, for each of them."""

        def call(mutant: Mutant) -> Call:
            tests, seconds = self.tests_of(mutant)

            def run() -> int:
                if not tests:
                    return NOT_READ
                change_imports(mutant)
                return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))

            return mutant, run, 4 * seconds + 60

        for mutant, status in in_children(map(call, mutants), self.jobs):
            self.end(mutant, status)

    def collected(self, mutants: list[Mutant]) -> None:
        """Try mutants in copies of this process after it has collected the tests."""
        if mutants:
            # Not "none": pytest takes no lock on its folder then, and any other that ends removes it.
            options = ["-q", "-s", "-p", "no:cacheprovider", "-o", "tmp_path_retention_policy=failed"]
            pytest.main([*options, "-k", LEFT, *(self.tests or TESTS)], plugins=[_Collected(self, mutants)])


class _Collected:
    """A pytest plugin that tries mutants in place of running the tests."""

    def __init__(self, trial: Trial, mutants: list[Mutant]) -> None:
        self.trial, self.mutants, self.inside = trial, mutants, False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        rooms = {item.path.parent: item for item in session.items}
        first, last = next(iter(rooms.values())), [*rooms.values()][-1]
        if first is not last:  # what all rooms share is made once
            for item, following in ((last, first), (first, last)):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        functions: dict[tuple[str, str, int], list[types.FunctionType]] = {}
        for found in gc.get_objects():
            if type(found) is types.FunctionType:
                code = found.__code__
                key = os.path.realpath(code.co_filename), code.co_qualname, code.co_firstlineno
                functions.setdefault(key, []).append(found)

        def call(mutant: Mutant) -> Call:
            tests, seconds = self.trial.tests_of(mutant)

            def run() -> int:
                if not tests:
                    return NOT_READ
                self.inside = True
                change_imports(mutant)
                key = (str(mutant.file), *(mutant.function or ("", 0)))
                for function in functions.get(key, ()):
                    function.__code__ = changed_code(mutant)
                chosen = [*items.values()] if self.trial.tests else [items[test] for test in tests]
                for item, following in zip(chosen, [*chosen[1:], chosen[-1]], strict=True):
                    item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                return 0

            return mutant, run, 4 * seconds + 20

        for mutant, status in in_children(map(call, self.mutants), self.trial.jobs):
            self.trial.end(mutant, status)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.inside and report.failed:
            os._exit(FAILED)


def tests_beside(file: Path) -> str:
    """Return how the tests of the room of a file begin, or of the file where it is in none."""
    top, *inner = file.relative_to(ROOT).parts
    folder = "tests/core" if top == "domaingallery_core" else "tests/nodes"
    return f"{folder}/{inner[0]}/" if len(inner) > 1 else f"{folder}/test_{inner[0]}"


def changed_code(mutant: Mutant) -> types.CodeType:
    """Return the code of the function around a change, with the change."""
    waiting = [compile(mutant.source, str(mutant.file), "exec")]
    while waiting:
        code = waiting.pop()
        if (code.co_qualname, code.co_firstlineno) == mutant.function:
            return code
        waiting += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    raise LookupError(f"no function {mutant.function!r}")


def change_imports(mutant: Mutant) -> None:
    """Let this process import a file with the change."""
    loader = importlib.machinery.SourceFileLoader
    usual = loader.get_code

    def get_code(self: Any, name: str) -> Any:
        if Path(self.path).resolve() == mutant.file:
            return compile(mutant.source, self.path, "exec")
        return usual(self, name)

    loader.get_code = get_code  # type: ignore[method-assign]


def mutants_of(file: Path) -> list[Mutant]:
    """Return every change of a file that still compiles."""
    text = file.read_text()
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    content, found = text.encode(), []
    tree = ast.parse(text)
    around = functions_around(tree)
    for node, after in changes(tree):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        source = (content[:begin] + after.encode() + content[end:]).decode()
        with contextlib.suppress(SyntaxError):
            compile(source, str(file), "exec")
            before = content[begin:end].decode()
            if before != after:
                place = node.lineno, node.end_lineno
                found.append(Mutant(file, *place, before, after, source, around.get(id(node))))
    return found


def functions_around(tree: ast.AST, name: str = "") -> dict[int, tuple[str, int]]:
    """Return the outermost function around each node, by the node's id: qualified name and first line."""
    found: dict[int, tuple[str, int]] = {}
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
            for part in child.body:
                found |= {id(node): (f"{name}{child.name}", first) for node in ast.walk(part)}
        elif isinstance(child, ast.ClassDef):
            found |= functions_around(child, f"{name}{child.name}.")
        else:
            found |= functions_around(child, name)
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
