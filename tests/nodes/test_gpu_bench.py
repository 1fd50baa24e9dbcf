"""The bench of a card in its thin form: what it measures, and what becomes of what it cannot."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.card.measuring import Workbench
from benchmarks.card.report import Report, card
from benchmarks.card.rows import COMPILING, MARGIN, Result, Row, of_steps, ordered, predicted, work
from benchmarks.card.sizes import SIZES, THIN, TooLarge
from benchmarks.random_training import Pack

SD, XL, FLUX = SIZES


@pytest.fixture
def workbench(comfy, pack, host_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(sys.modules["comfy.utils"], "PROGRESS_BAR_ENABLED", False)
    return Workbench(Pack(host_path), THIN, compiler="eager")


def bench_of(workbench: Workbench, rows: list[Row], path: Path | None = None, seconds: float = 600.0):
    report = Report(path, card(workbench.device), THIN, list(rows))
    return gpu.Bench(workbench, report, time.perf_counter() + seconds)


def test_both_stages_and_sampling_are_measured(workbench, tmp_path: Path):
    rows = [
        Row(FLUX, "float8_e4m3fn", "stage 2", offload="on"),
        Row(FLUX, "bfloat16", "stage 1", checkpointing="on"),
        Row(FLUX, "bfloat16", "sampling"),
        Row(XL, "float16", "sampling"),
    ]
    path = tmp_path / "gpu.md"
    bench = bench_of(workbench, rows, path)
    bench.go()

    found = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert [(row["model"], row["task"]) for row in found["rows"]] == [(row.model, row.task) for row in rows]
    assert [row["outcome"] for row in found["rows"]] == ["", "", "", ""]
    second, first, drawn, wide = found["rows"]
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert second["system memory"] > 0 and second["twice"] == second["blocks"] == 3
    assert first["system memory"] == 0 and first["twice"] == 3
    assert all(row["estimated seconds"] > 0 and row["estimated peak"] > 0 for row in (second, first))
    assert [(row["rows"], row["enhanced rows"]) for row in (drawn, wide)] == [(2, 3), (2, 3)]
    assert found["card"]["ComfyUI"] and found["left out"] == []
    text = path.read_text("utf-8")
    assert text.count("| Flux.1 dev, 1024 |") == 3 and "## Training" in text and "## Sampling" in text
    assert gpu.status(bench.report.results) == 0


def test_want_of_memory_is_a_result_and_the_next_row_is_measured(workbench, tmp_path: Path, monkeypatch):
    outcomes = iter([torch.OutOfMemoryError("CUDA out of memory. Tried"), TooLarge("22 GB of weights"), None])

    def measure(row: Row, until: float) -> dict[str, float]:
        if (error := next(outcomes)) is not None:
            raise error
        return {"seconds": 1.0, "twice": 0, "blocks": 3}

    monkeypatch.setattr(workbench, "measure", measure)
    rows = ordered(THIN)[:2] + ordered(THIN)[3:4]
    bench = bench_of(workbench, rows, tmp_path / "gpu.md")
    bench.go()

    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert "| out of memory |" in text and "| too large: 22 GB of weights |" in text
    assert bench.report.results[-1].values["seconds"] == 1.0
    assert gpu.status(bench.report.results) == 0


def test_another_error_is_shown_in_a_line_and_fails_the_bench(workbench, monkeypatch):
    def measure(row: Row, until: float) -> dict[str, float]:
        raise RuntimeError("no kernel image | for this card\nand more")

    monkeypatch.setattr(workbench, "measure", measure)
    bench = bench_of(workbench, ordered(THIN)[:1])
    bench.go()

    [result] = bench.report.results
    assert result.outcome == "failed: RuntimeError: no kernel image | for this card"
    assert "no kernel image / for this card |" in bench.report.markdown()
    assert gpu.status(bench.report.results) == 1


def test_rows_for_which_there_is_no_time_are_listed(workbench, tmp_path: Path):
    rows = ordered(THIN)
    bench = bench_of(workbench, rows, tmp_path / "gpu.md", seconds=0.0)
    bench.go()

    assert bench.report.results == [] and gpu.status([]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert len(found["left out"]) == len(rows)
    assert f"- {SD}, float16, stage 1, checkpointing off\n" in (tmp_path / "gpu.md").read_text("utf-8")


def test_the_row_that_runs_when_the_time_is_up_is_cut(workbench, tmp_path: Path, monkeypatch):
    bench = bench_of(workbench, ordered(THIN), tmp_path / "gpu.md")
    bench.running = ordered(THIN)[0]
    ended: list[int] = []
    monkeypatch.setattr(gpu.os, "_exit", ended.append)
    bench.cut()

    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert [row["outcome"] for row in found["rows"]] == ["cut, as the time was up"]
    assert len(found["left out"]) == len(ordered(THIN)) - 1
    assert ended == [1]


def test_the_command_writes_where_it_is_told(workbench, host_path: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ordered", lambda sizes: [Row(FLUX, "bfloat16", "sampling")])
    path = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", ["gpu", "--host", str(host_path), "--out", str(path), "--thin"])

    assert gpu.main() == 0
    assert path.read_text("utf-8") in capsys.readouterr().out


def test_without_a_card_it_asks_for_the_thin_form(workbench, host_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--host", str(host_path)])

    with pytest.raises(SystemExit):
        gpu.main()
    assert "--thin" in capsys.readouterr().err


def test_every_row_comes_once_and_the_defaults_of_each_model_come_first():
    rows = ordered(SIZES)

    assert len(rows) == len(set(rows))
    first = [(row.model, row.task) for row in rows[:9]]
    assert first == [(name, task) for name in SIZES for task in ("stage 2", "stage 1", "sampling")]
    assert all(
        (row.checkpointing, row.offload, row.compiled) == ("automatic",) * 2 + (False,) for row in rows[:9]
    )
    bases = {(row.model, row.base) for row in rows}
    assert bases == {(name, base) for name, size in SIZES.items() for base in size.bases}
    assert all(
        Row(*base, task, *how) in rows
        for base in bases
        for task in ("stage 1", "stage 2")
        for how in (
            ("automatic", "automatic"),
            ("off", "automatic"),
            ("on", "automatic"),
            ("automatic", "on"),
        )
    )


def test_a_row_is_expected_to_take_what_those_of_its_kind_took():
    def result(row: Row, step: float, beside: float) -> Result:
        return Result(row, values={"seconds": step}, took=of_steps(row, step) + beside)

    row = Row(SD, "float16", "stage 2")
    done = [result(row, 2.0, 3.0), result(Row(XL, "float16", "stage 2"), 50.0, 9.0)]
    again = Row(SD, "bfloat16", "stage 2", checkpointing="on")
    assert predicted(again, done, SIZES) == pytest.approx(MARGIN * (of_steps(again, 2.0) + 3.0))
    compiled = Row(SD, "float16", "stage 2", compiled=True)
    assert predicted(compiled, done, SIZES) == pytest.approx(MARGIN * (of_steps(row, 2.0) + 3.0 + COMPILING))
    large = Row(FLUX, "bfloat16", "stage 1")
    pace = min(2.0 / work(done[0].row, SIZES), 50.0 / work(done[1].row, SIZES))
    expected = MARGIN * (of_steps(large, pace * work(large, SIZES)) + 9.0)
    assert predicted(large, done, SIZES) == pytest.approx(expected)
    assert predicted(row, [Result(row, outcome="out of memory")], SIZES) == 0.0


@pytest.mark.parametrize("name", SIZES)
def test_models_are_as_large_as_people_have_them(comfy, name: str):
    size = SIZES[name]
    config = getattr(importlib.import_module("comfy.supported_models"), size.config)(dict(size.network))
    network = config.get_model({}, "", device="meta").diffusion_model
    weights = sum(weight.numel() for weight in network.parameters())

    assert weights / 1e9 == pytest.approx(size.weights, rel=0.01)
