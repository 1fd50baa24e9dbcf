"""What was measured on a card, as tables in Markdown and as JSON, whole after every row."""

from __future__ import annotations

import datetime
import importlib
import json
import platform
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from domaingallery_core.files.writing import write_file

from .rows import Result, Row
from .sizes import Size

GB = 2**30
#: Heads of columns, and what stands in them for a row.
Columns = dict[str, Callable[[Result], str]]


@dataclass(slots=True, eq=False)
class Report:
    """Hold what was measured so far; written after every row.

    Attributes:
        path: of the Markdown; JSON is beside it. None for neither.
        card: what it was measured on, by name.
        left: rows that were not measured yet.
        passed_over: rows for which there was no time.
    """

    path: Path | None
    card: dict[str, str]
    sizes: Mapping[str, Size]
    left: list[Row]
    results: list[Result] = field(default_factory=list)
    passed_over: list[Row] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, result: Result) -> None:
        """Note what became of a row."""
        with self._lock:
            self.left.remove(result.row)
            self.results.append(result)
            self.write()

    def pass_over(self, row: Row) -> None:
        """Note that there is no time for a row."""
        with self._lock:
            self.left.remove(row)
            self.passed_over.append(row)

    def cut(self, running: Row | None) -> None:
        """Note that the time is up: the row that runs is cut, those that are left are left out."""
        with self._lock:
            if running in self.left:
                self.add(Result(running, outcome="cut, as the time was up"))
            for row in list(self.left):
                self.pass_over(row)
            self.write()

    def write(self) -> None:
        """Write both files, each whole or as it was."""
        if self.path is None:
            return
        with self._lock:
            write_file(self.path, self.markdown().encode())
            write_file(self.path.with_suffix(".json"), json.dumps(self.to_dict(), indent=1).encode())

    def to_dict(self) -> dict[str, Any]:
        """Return all that is known, in numbers: seconds and bytes."""
        return {
            "card": self.card,
            "rows": [
                {**asdict(r.row), "outcome": r.outcome, "took": r.took, **r.values} for r in self.results
            ],
            "left out": [asdict(row) for row in (*self.passed_over, *self.left)],
        }

    def markdown(self) -> str:
        """Return the tables."""
        lines = [f"{name}: {value}  " for name, value in self.card.items()]
        for title, columns, trains in (
            ("Training", self._training(), True),
            ("Sampling", self._sampling(), False),
        ):
            rows = [result for result in self.results if result.row.trains == trains]
            if rows:
                lines += ["", f"## {title}", "", *table(columns, rows)]
        if left := [*self.passed_over, *self.left]:
            lines += ["", "## Left out for want of time", "", *(f"- {row}" for row in left)]
        return "\n".join(lines) + "\n"

    def _training(self) -> Columns:
        return {
            "model": lambda r: r.row.model,
            "weights": lambda r: r.row.base,
            "stage": lambda r: r.row.task,
            "batch": lambda r: str(self.sizes[r.row.model].batch),
            "checkpointing": lambda r: r.row.checkpointing,
            "offload": lambda r: r.row.offload,
            "compiled": lambda r: "yes" if r.row.compiled else "no",
            "s a step": lambda r: r.outcome or number(r.values["seconds"]),
            "estimated": lambda r: number(r.values.get("estimated seconds")),
            "GB": lambda r: gigabytes(r.values.get("peak")),
            "estimated GB": lambda r: gigabytes(r.values.get("estimated peak")),
            "blocks twice": lambda r: "" if r.outcome else f"{r.values['twice']} of {r.values['blocks']}",
            "GB in system memory": lambda r: gigabytes(r.values.get("system memory") or None),
            "rows at once": lambda r: str(r.values.get("rows at once") or ""),
            "computes in": lambda r: r.values.get("computes in", ""),
        }

    def _sampling(self) -> Columns:
        return {
            "model": lambda r: r.row.model,
            "weights": lambda r: r.row.base,
            "compiled": lambda r: "yes" if r.row.compiled else "no",
            "s a step": lambda r: r.outcome or number(r.values["seconds"]),
            "enhanced": lambda r: number(r.values.get("enhanced seconds")),
            "time": lambda r: ratio(r.values, "enhanced seconds", "seconds"),
            "rows": lambda r: ratio(r.values, "enhanced rows", "rows"),
            "GB": lambda r: gigabytes(r.values.get("peak")),
            "enhanced GB": lambda r: gigabytes(r.values.get("enhanced peak")),
        }


def table(columns: Columns, results: Sequence[Result]) -> list[str]:
    """Return the lines of a table in Markdown."""
    heads = f"| {' | '.join(columns)} |"
    rows = [" | ".join(cell(result).replace("|", "/") for cell in columns.values()) for result in results]
    return [heads, "|---" * len(columns) + "|", *(f"| {row} |" for row in rows)]


def number(value: float | None) -> str:
    """Return a number with three digits; nothing for None."""
    return "" if value is None else f"{value:.3g}"


def gigabytes(size: int | None) -> str:
    """Return bytes in GB; nothing for None."""
    return "" if size is None else f"{size / GB:.2f}"


def ratio(values: Mapping[str, Any], one: str, other: str) -> str:
    """Return how many times a value another is, with both; nothing where there are none."""
    return f"{values[one] / values[other]:.2f}" if one in values else ""


def card(device: torch.device) -> dict[str, str]:
    """Return what a device is, and what runs on it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = {"card": f"{properties.name}, {properties.total_memory / GB:.1f} GB", "driver": driver()}
    else:
        found = {"card": f"none; {torch.get_num_threads()} threads of a processor"}
    return found | {
        "system memory": f"{psutil.virtual_memory().total / GB:.0f} GB",
        "torch": torch.__version__,
        "ComfyUI": importlib.import_module("comfyui_version").__version__,
        "Python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def driver() -> str:
    """Return the version of NVIDIA's driver, as its own program says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.strip().partition("\n")[0] or "unknown"
