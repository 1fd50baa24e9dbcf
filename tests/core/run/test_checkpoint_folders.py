"""The folders of a run: which is whose, what is in them, and what remains."""

from __future__ import annotations

import contextlib

import pytest
import torch

from domaingallery_core.errors import InputError
from domaingallery_core.files.writing import claimed
from domaingallery_core.run import checkpoints as module
from domaingallery_core.run.checkpoints import Checkpoint, Checkpoints, checkpoint_files


def checkpoint(step):
    return Checkpoint(step, {"plan": 1}, {"trained.w": torch.ones(2)}, {"averaged": step})


def names(folder):
    return [path.name for path in checkpoint_files(folder)]


def test_checkpoints_are_those_of_every_few_minutes_unless_it_is_said_otherwise(tmp_path):
    found = Checkpoints(tmp_path, {})

    assert (found.every, found.keep, found.resume, found.interval) == (0, 1, True, 180.0)
    assert (found.saved, found.finished, found.place) == (None, False, tmp_path)


def test_so_many_processes_are_at_a_run_at_once_and_one_more_is_refused(tmp_path):
    """Without a folder of its own it would write over what another one keeps."""
    folder = tmp_path / "run"
    beside = [tmp_path / f"run-{n}" for n in range(2, module.MOST_AT_ONCE + 1)]
    places = []

    with contextlib.ExitStack() as stack:
        for _ in range(module.MOST_AT_ONCE):
            checkpoints = Checkpoints(folder, {})
            stack.enter_context(checkpoints.claimed())
            places.append(checkpoints.place)
        with pytest.raises(InputError, match="at most 9 trainings of 'run' at once, got one more"):
            stack.enter_context(Checkpoints(folder, {}).claimed())

    assert places == [folder, *beside] and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_not_taken_for_other_processes(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path / "file" / "run", {"plan": 1})

    with checkpoints.claimed():
        assert not checkpoints.save(checkpoint(1))


def test_what_was_written_or_gone_on_from_is_known_until_the_run_is_finished(tmp_path):
    first, again, restored = Checkpoints(tmp_path, {"plan": 1}), Checkpoints(tmp_path, {"plan": 1}), []
    assert first.save(checkpoint(3)) and first.saved == tmp_path / "step_000003.safetensors"

    found = again.load(restored.append)

    assert again.saved == first.saved and restored == [found] and found.step == 3
    again.finish()
    assert again.saved is None and again.finished and names(tmp_path) == []


def test_checkpoints_that_were_asked_for_stay_when_the_run_is_finished(tmp_path):
    checkpoints = Checkpoints(tmp_path, {}, every=1)
    checkpoints.save(checkpoint(1))

    checkpoints.finish()

    assert names(tmp_path) == ["step_000001.safetensors"] and not checkpoints.finished


def test_what_another_process_keeps_is_not_removed_and_what_an_ended_one_kept_is(tmp_path):
    folder, gone, other = tmp_path / "run", tmp_path / "run-2", tmp_path / "run-3"
    for place in (folder, gone, other):
        Checkpoints(place, {}).save(checkpoint(1))

    with claimed(other) as ours:
        assert ours
        checkpoints = Checkpoints(folder, {})
        with checkpoints.claimed():
            checkpoints.finish()

    assert (names(folder), names(gone), names(other)) == ([], [], ["step_000001.safetensors"])


def test_starting_over_removes_what_was_there_with_the_first_that_is_written(tmp_path):
    """Until then a run that is ended at once loses nothing; afterwards it goes on from its own."""
    for step in (1, 7):
        Checkpoints(tmp_path, {}, keep=2).save(checkpoint(step))
    anew = Checkpoints(tmp_path, {}, keep=2, resume=False)

    assert anew.load(lambda checkpoint: None) is None
    assert names(tmp_path) == ["step_000001.safetensors", "step_000007.safetensors"]
    anew.save(checkpoint(3))
    assert names(tmp_path) == ["step_000003.safetensors"]
    anew.save(checkpoint(4))
    assert names(tmp_path) == ["step_000003.safetensors", "step_000004.safetensors"]


def test_a_checkpoint_is_due_after_so_many_steps_or_so_long(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    asked, unasked = Checkpoints(tmp_path, {}, every=3), Checkpoints(tmp_path, {})

    assert [step for step in range(1, 8) if asked.due(step)] == [3, 6]
    assert all(Checkpoints(tmp_path, {}, every=1).due(step) for step in range(1, 4))
    assert not any(unasked.due(step) for step in range(1, 8))
    now[0] = 180.0
    assert asked.due(1) and unasked.due(1)
    unasked.save(checkpoint(1))
    assert not unasked.due(2)
