"""A cancel, a want of memory, a full disk or any other error, anywhere in a run, costs nothing unsaid."""

from __future__ import annotations

import gc
import time

import pytest

from tests.nodes.faults.injection import FAULTS

#: Seconds that the test over all operations may take; the bench tries every call.
SECONDS = 60


@pytest.fixture
def bench(nodes, comfy, output, monkeypatch):
    from tests.nodes.faults.scenario import Bench  # it imports the host

    yield Bench(nodes, output / "runs", monkeypatch.setattr)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_folder(comfy, output, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(output / "runs"))


def test_every_operation_may_fail(bench):
    """Each of them at its first call and as many others as the time allows, each fault in turn."""
    began, faults = time.monotonic(), list(FAULTS)
    places = bench.chains(faults)
    first = {(len(chain), chain[-1][0]): chain for chain in reversed(places)}
    others = places[:: len(places) // 97 or 1]
    problems, tried = [], 0
    for number, chain in enumerate([*first.values(), *others]):
        if time.monotonic() - began > SECONDS:
            break
        *before, (name, n, fault) = chain
        fault = faults[number % len(faults)]
        problems += [f"{name} {n} {fault}: {text}" for text in bench.check(*before, (name, n, fault))]
        tried += 1

    assert problems == []
    assert len(bench.calls) > 30 and len(bench.calls_gone_on) > 30
    assert tried > 30


def broken_by(bench, monkeypatch, owner, attribute, value, *triples):
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, value)
        return bench.check(*triples)


def test_the_bench_sees_what_is_broken(nodes, bench, monkeypatch):
    """A changed model, steps that are lost unsaid, another LoRA, a file left over, a memory leak."""
    trainer, state = nodes("domaingallery_core.run.trainer"), nodes("domaingallery_core.run.state").RunState
    checkpoints = nodes("domaingallery_core.run.checkpoints").Checkpoints
    files, training = nodes("domaingallery_core.files.writing"), nodes("nodes.train.training")
    stop = ("backward", 3, "interrupt")
    assert bench.check(stop) == []

    found = broken_by(bench, monkeypatch, checkpoints, "save", lambda *_: True, stop)
    assert any("step 1 is done again after 2" in text for text in found)

    found = broken_by(bench, monkeypatch, state, "_write_streams", lambda run, streams: None, stop)
    assert "another LoRA" in found

    found = broken_by(bench, monkeypatch, checkpoints, "finish", lambda self: None, stop)
    assert any("left behind: step_000004" in text for text in found)

    held = []

    def leaking(*given):
        held.append(draw(*given))
        return held[-1]

    draw = trainer.draw
    found = broken_by(bench, monkeypatch, trainer, "draw", leaking, stop)
    assert any(text.startswith("tensors: ") for text in found)
    held.clear()

    found = broken_by(bench, monkeypatch, files, "_place", lambda part, path, replace: path.write_bytes(b""))
    assert found

    def swallowed(what, make):
        try:
            return make()
        except BaseException:
            return None

    found = broken_by(
        bench, monkeypatch, nodes("nodes.train.live"), "attempt", swallowed, ("plot", 1, "interrupt")
    )
    assert "a cancel was passed over" in found
    found = broken_by(
        bench, monkeypatch, nodes("nodes.train.live"), "attempt", swallowed, ("plot", 1, "error")
    )
    assert "it went on without a word" in found

    def changing(model, *options):
        model.model_options["left"] = options
        return checkpointing(model, *options)

    checkpointing = training.gradient_checkpointing
    found = broken_by(bench, monkeypatch, training, "gradient_checkpointing", changing)
    assert any(text.startswith("options: ") for text in found)
