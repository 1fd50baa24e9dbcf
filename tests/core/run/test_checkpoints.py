"""A run that was stopped, however it was, goes on to the very same result."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import killed_run
import pytest
import torch
from killed_run import PLAN, run
from safetensors import safe_open
from toys import but, conditions, latents, part

from domaingallery_core.errors import FileError, InputError, TrainingError
from domaingallery_core.files import writing as files
from domaingallery_core.run import checkpoints as checkpoints_module
from domaingallery_core.run import state, trainer
from domaingallery_core.run.checkpoints import Checkpoint, Checkpoints, checkpoint_files, load_checkpoint
from domaingallery_core.run.monitor import Monitor

SHORT = but(PLAN, steps=8, weights=dict(similarity=0))


class Cancelled(BaseException):
    """What a host raises to cancel."""


def cancel_at(*steps):
    def on_step(event):
        if event.step in steps:
            raise Cancelled

    return on_step


def same(first, second):
    return first.state_dict.keys() == second.state_dict.keys() and all(
        torch.equal(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items()
    )


def test_killed_at_ten_random_steps_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL leaves no time for anything; the interval of 2 steps makes most kills lose a step."""
    expected = run()
    context = multiprocessing.get_context("fork")  # others would import torch eleven times
    moments = random.Random(0)
    resumed, kills, last = [], 0, 0
    while True:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=killed_run.killable, args=(str(tmp_path), theirs))
        child.start()
        theirs.close()
        told = ours.recv()
        resumed.append(told if isinstance(told, int) else PLAN.optimizer.steps + 1)
        wanted = last = (
            min(max(told, last + moments.randint(1, 3)), PLAN.optimizer.steps) if kills < 10 else 0
        )
        while isinstance(told, int) and told != wanted:
            told = ours.recv()
        if kills == 10:
            break
        time.sleep(moments.random() * 0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    child.join()

    started, weights, losses = told
    assert kills == 10 and started >= 20
    assert resumed[0] == 1 and sorted(resumed) == resumed
    assert losses == expected.losses
    assert weights.keys() == expected.state_dict.keys()
    assert all(torch.equal(torch.from_numpy(weights[k]), v) for k, v in expected.state_dict.items())


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.0, "ema": 0.0, "accumulation": 1}, {"min_snr": 5.0}])
def test_cancelled_three_times_it_ends_with_the_same_bytes(tmp_path, changes):
    """Without an interval, a checkpoint is written for the cancel alone, and gone when the run is done."""
    plan = but(SHORT, **changes)
    expected = run(plan)

    for step in (1, 3, 8):
        with pytest.raises(Cancelled):
            run(plan, tmp_path / "run", cancel_at(step))
        assert [path.name for path in checkpoint_files(tmp_path / "run")] == [f"step_{step:06}.safetensors"]
    result = run(plan, tmp_path / "run")

    assert result.resumed == 8
    assert same(result, expected)
    assert result.losses == expected.losses
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_going_on_leaves_the_global_generator_alone(tmp_path, dropout):
    plan = but(SHORT, dropout=dropout)
    with pytest.raises(Cancelled):
        run(plan, tmp_path, cancel_at(3))

    with torch.random.fork_rng():
        torch.manual_seed(99)
        state = torch.get_rng_state()
        assert run(plan, tmp_path).resumed == 3
        assert torch.equal(torch.get_rng_state(), state)


def test_stopped_after_each_step_also_those_that_are_not_finite_it_ends_with_the_same_bytes(tmp_path):
    plan = but(SHORT, batch_size=1, accumulation=1, weights=dict(prior=0, disentanglement=0, similarity=0))
    images = latents(4, 1)
    images[0] = 1e30  # whose square is infinite
    parts = [part(images)]
    expected = run(plan, parts=parts)

    for step in range(1, plan.optimizer.steps + 1):
        with pytest.raises(Cancelled):
            run(plan, tmp_path, cancel_at(step), parts=parts)
        assert [path.name for path in checkpoint_files(tmp_path)] == [f"step_{step:06}.safetensors"]
    result = run(plan, tmp_path, parts=parts)

    assert expected.skipped == result.skipped == 2 and len(expected.losses["total"]) == 6
    assert result.losses == expected.losses and same(result, expected)


def test_a_run_that_ends_for_its_losses_is_not_kept(tmp_path):
    """It would end again at the next step."""
    images = torch.full_like(latents(4, 1), 1e30)  # whose square is infinite
    weights = dict(prior=0, disentanglement=0, similarity=0)

    with pytest.raises(TrainingError, match="5 steps in a row"):
        run(but(SHORT, weights=weights), tmp_path, parts=[part(images)])

    assert not checkpoint_files(tmp_path)


def test_the_seconds_of_a_step_are_those_since_a_run_went_on(tmp_path, monkeypatch):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(6))
    now, told = [100.0], []
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: now[0])

    def on_step(event):
        told.append((event.step, event.seconds_per_step))
        now[0] += 6.0

    run(SHORT, tmp_path, on_step)

    assert told == [(7, 0.0), (8, 3.0)]


def test_an_error_inside_a_step_goes_back_to_the_end_of_the_last(tmp_path, monkeypatch):
    expected = run(SHORT)
    draw, calls = trainer.draw, []

    def broken(*args):
        noised = draw(*args)
        calls.append(1)
        if len(calls) == 8:  # the second batch of step 4
            raise MemoryError("out of memory")
        return noised

    monkeypatch.setattr(trainer, "draw", broken)
    with pytest.raises(MemoryError):
        run(SHORT, tmp_path)
    result = run(SHORT, tmp_path)

    assert result.resumed == 3
    assert same(result, expected)


def test_pictures_and_validation_change_nothing_and_survive_a_cancel(tmp_path):
    monitor = Monitor(validate_every=3, preview_every=4, previews=2, preview_steps=2)
    expected, events = run(SHORT), []

    full = run(SHORT, monitor=monitor, on_step=events.append)
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5), monitor=monitor)
    result = run(SHORT, tmp_path, monitor=monitor)

    assert same(full, expected) and same(result, expected)
    assert list(result.validation) == [0, 3, 6, 8] and result.validation == full.validation
    assert list(result.previews) == [0, 4, 8]
    assert all(torch.equal(result.previews[step], latents) for step, latents in full.previews.items())
    assert [event.step for event in events] == list(range(9))
    assert events[0].losses == {} and events[0].validation[0] == full.validation[0]


def test_the_number_kept_is_that_asked_for(tmp_path):
    run(SHORT, tmp_path, every=2, keep=2)

    assert [path.name for path in checkpoint_files(tmp_path)] == [
        "step_000006.safetensors",
        "step_000008.safetensors",
    ]
    again = run(SHORT, tmp_path, every=2, keep=2)
    assert again.resumed == 8 and same(again, run(SHORT))


def test_another_plan_dataset_prompt_or_base_is_refused_with_what_differs(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(3))
    before = [path.read_bytes() for path in checkpoint_files(tmp_path)]
    other = but(SHORT, learning_rate=2e-2, weights=dict(similarity=0, prior=2.0))
    images, others = (part(latents(5, seed), latents(12, 2)) for seed in (1, 3))
    prompts = replace(conditions(), source=conditions().target)

    for options, named in (
        (
            {"plan": other},
            r"plan\.method\.weights\.prior was 1\.0 and is 2\.0; "
            r"plan\.optimizer\.learning_rate was 0\.01 and is 0\.02",
        ),
        ({"parts": [others]}, r"target images of images differs\. Set"),
        ({"parts": [replace(images, prompts=prompts)]}, r"one: source prompt of images differs\. Set"),
        ({"seed": 1}, r"got another one: base model weights differs\. Set"),
    ):
        with pytest.raises(InputError, match=named):
            run(folder=tmp_path, **{"plan": SHORT} | options)

    assert [path.read_bytes() for path in checkpoint_files(tmp_path)] == before
    assert run(SHORT, tmp_path).resumed == 3


@pytest.mark.parametrize(("count", "end"), [(6, "f was 1 and is 2"), (8, "f was 1 and is 2; and 2 more")])
def test_of_many_differences_a_few_are_named_and_the_rest_counted(tmp_path, count, end):
    first, other = (dict.fromkeys("abcdefgh"[:count], value) for value in (1, 2))
    Checkpoints(tmp_path, first).save(Checkpoint(1, first, {}, {}))

    with pytest.raises(InputError, match=rf"got another one: a was 1 and is 2; .*; {end}\. Set these back"):
        Checkpoints(tmp_path, other).load(lambda checkpoint: None)


def test_starting_over_replaces_what_is_there(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(6))
    other = but(SHORT, seed=5)

    with pytest.raises(Cancelled):
        run(other, tmp_path, cancel_at(2), resume=False)

    assert [path.name for path in checkpoint_files(tmp_path)] == ["step_000002.safetensors"]
    assert same(run(other, tmp_path), run(other))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5), every=2, keep=3)
    newest = checkpoint_files(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])

    with caplog.at_level(logging.WARNING):
        result = run(SHORT, tmp_path)

    assert "step_000005" in caplog.text
    assert result.resumed == 4 and same(result, run(SHORT))


def full_disk(monkeypatch, *steps):
    """Let the disk be full when the checkpoints of these steps are written; of all without any."""
    write = files.os.fsync

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if not steps or any(f"step_{step:06}" in name for step in steps):
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_full_disk_does_not_end_a_run_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch, 4, 6, 8)
    result = run(SHORT, tmp_path, every=2, keep=3)

    assert same(result, run(SHORT))
    assert "Step 4 is not kept" in caplog.text and "No space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step_000002.safetensors"]


def test_a_cancel_passes_through_although_the_disk_is_full(tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch)
    with pytest.raises(Cancelled) as caught:
        run(SHORT, tmp_path / "run", cancel_at(3))

    assert caught.value.__notes__ == [
        "The run was stopped after step 3 and could not be kept there; it begins anew."
    ]
    assert caught.value.__notes__[0] in caplog.text and "No space left" in caplog.text
    assert not (tmp_path / "run").exists()


def test_a_cancel_before_the_first_step_leaves_nothing_to_go_on_from(tmp_path, caplog):
    with pytest.raises(Cancelled) as caught:
        run(SHORT, tmp_path, cancel_at(0), monitor=Monitor(validate_every=4))

    assert not checkpoint_files(tmp_path)
    assert not hasattr(caught.value, "__notes__") and not caplog.text


def test_a_cancel_of_a_run_that_is_not_kept_says_nothing_of_keeping(caplog):
    with pytest.raises(Cancelled) as caught:
        run(SHORT, on_step=cancel_at(3))

    assert not hasattr(caught.value, "__notes__") and not caplog.text


def test_a_cancel_while_looking_is_kept_with_the_step_that_is_done(tmp_path, monkeypatch):
    """A host raises its interrupt inside any of its operations, so in a validation or a preview as well."""
    monitor = Monitor(validate_every=2, preview_every=2, preview_steps=2)
    expected = run(SHORT, monitor=monitor)
    for name in ("validation_loss", "draw_previews"):
        whole, calls = getattr(trainer, name), []

        def cut_short(*given, calls=calls, whole=whole):
            calls.append(1)
            if len(calls) == 3:  # of step 4
                raise Cancelled
            return whole(*given)

        with monkeypatch.context() as patch:
            patch.setattr(trainer, name, cut_short)
            with pytest.raises(Cancelled):
                run(SHORT, tmp_path / name, monitor=monitor)
        result = run(SHORT, tmp_path / name, monitor=monitor)

        assert result.resumed == 4 and same(result, expected)
        assert result.losses == expected.losses and result.validation == expected.validation
        assert list(result.previews) == list(expected.previews)


def test_what_fails_in_looking_does_not_end_a_run(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("out of memory")

    def nowhere(*given):
        return latents(1, 1) * float("nan")

    monkeypatch.setattr(trainer, "validation_loss", broken)
    monkeypatch.setattr(trainer, "draw_previews", nowhere)
    result = run(SHORT, monitor=Monitor(validate_every=4, preview_every=4))

    assert same(result, run(SHORT)) and not result.validation and not result.previews
    assert "The validation loss of step 4 could not be read: out of memory" in caplog.text
    assert "The pictures of step 8 could not be drawn: they are not finite" in caplog.text


def test_after_the_last_step_the_run_is_kept_until_it_is_finished(tmp_path):
    """What is done with the result may fail; then the same run again gives it at once."""
    steps, kept = [], []

    def on_step(event):
        steps.append(event.step)
        kept.extend(path.name for path in checkpoint_files(tmp_path))
        if event.step == SHORT.optimizer.steps:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, on_step)
    assert kept == [f"step_{SHORT.optimizer.steps:06}.safetensors"]
    result = run(SHORT, tmp_path)

    assert result.resumed == SHORT.optimizer.steps and same(result, run(SHORT))


@pytest.mark.parametrize("gone", [True, False])
def test_a_checkpoint_that_cannot_be_removed_is_warned_of_and_one_that_is_gone_is_not(
    tmp_path, monkeypatch, caplog, gone
):
    unlink = Path.unlink

    def cannot(path, missing_ok=False):
        if path.name == "step_000001.safetensors":
            if not gone:
                raise PermissionError(13, "Permission denied")
            unlink(path)  # another program is quicker
        unlink(path, missing_ok)

    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.save(Checkpoint(1, {}, {}, {}))
    monkeypatch.setattr(Path, "unlink", cannot)
    assert checkpoints.save(Checkpoint(2, {}, {}, {}))

    warned = "The checkpoint step_000001.safetensors cannot be removed: Permission denied."
    assert caplog.messages == ([] if gone else [warned])
    assert checkpoints.saved == tmp_path / "step_000002.safetensors" and checkpoints.saved.exists()


def test_a_checkpoint_is_left_every_three_minutes_without_being_asked(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now[0])
    seen = []

    def on_step(event):
        seen.append([path.name for path in checkpoint_files(tmp_path)])
        now[0] += 90.0

    run(SHORT, tmp_path, on_step)

    assert ["".join(names) for names in seen] == [
        *["", ""],
        *["step_000003.safetensors"] * 2,
        *["step_000005.safetensors"] * 2,
        "step_000007.safetensors",
        "step_000008.safetensors",
    ]


def test_what_a_killed_writer_left_is_cleared_and_what_is_being_written_is_not(tmp_path):
    left, written = (tmp_path / f".step_000002.safetensors.{name}.part" for name in ("aaaa", "bbbb"))
    for path in (left, written):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))

    with files.locked(written, "rb+"), pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(2))

    assert not left.exists() and written.exists()


def test_with_a_damaged_newest_checkpoint_the_next_ones_are_kept(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(6), every=2, keep=2)
    newest = checkpoint_files(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)

    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5), keep=1)

    assert [path.name for path in checkpoint_files(tmp_path)] == ["step_000005.safetensors"]
    assert run(SHORT, tmp_path).resumed == 5


@pytest.mark.parametrize(
    "damage", ["adapter", "more", "shape", "stream", "number", "step", "no step", "late step", "moment"]
)
def test_a_checkpoint_with_other_contents_gives_way_to_the_one_before(tmp_path, caplog, damage):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5), every=2, keep=3)
    path = checkpoint_files(tmp_path)[-1]
    found = load_checkpoint(path)
    first = next(name for name in found.tensors if name.startswith("trained."))
    moment = next(name for name in found.tensors if name.endswith("/exp_avg"))
    if damage == "adapter":
        del found.tensors[first]
    elif damage == "shape":
        found.tensors[first] = torch.zeros(1)
    elif damage == "stream":
        del found.tensors["stream.noise"]
    elif damage == "number":
        found.numbers["validation"] = None
    elif damage == "more":
        found.tensors["trained.more"] = torch.zeros(1)
    elif damage.endswith("step"):
        steps = {"step": -3, "no step": 0, "late step": SHORT.optimizer.steps + 1}
        found = replace(found, step=steps[damage])
    else:
        del found.tensors[moment]
    checkpoints_module.save_checkpoint(path, found)

    result = run(SHORT, tmp_path)

    assert "step_000005.safetensors is passed over" in caplog.text
    assert result.resumed == 4 and same(result, run(SHORT))


def test_a_run_that_began_on_a_gpu_goes_on_without_one(tmp_path, monkeypatch):
    def none(*_):
        raise RuntimeError("no GPU")

    monkeypatch.setattr(torch.cuda, "set_rng_state", none)
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5))
    [path] = checkpoint_files(tmp_path)
    found = load_checkpoint(path)
    found.tensors["stream.cuda"] = torch.zeros(16, dtype=torch.uint8)
    checkpoints_module.save_checkpoint(path, found)

    result = run(SHORT, tmp_path)

    assert result.resumed == 5 and same(result, run(SHORT))


def test_with_nothing_that_fits_a_run_begins_anew(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(5))
    path = checkpoint_files(tmp_path)[-1]
    found = load_checkpoint(path)
    del found.tensors["stream.noise"]  # the last that is restored
    checkpoints_module.save_checkpoint(path, found)

    result = run(SHORT, tmp_path)

    assert result.resumed == 0 and same(result, run(SHORT))


def test_a_folder_in_the_place_of_a_checkpoint_is_passed_over(tmp_path, caplog):
    (tmp_path / "step_000003.safetensors").mkdir(parents=True)

    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(3))
    result = run(SHORT, tmp_path)

    assert "Step 3 is not kept" in caplog.text
    assert result.resumed == 0 and same(result, run(SHORT))


def test_two_processes_at_the_same_run_keep_it_apart(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "run-2"
    with files.claimed(folder) as ours, pytest.raises(Cancelled):
        assert ours
        run(SHORT, folder, cancel_at(3))

    assert not checkpoint_files(folder)
    assert [path.name for path in checkpoint_files(other)] == ["step_000003.safetensors"]
    result = run(SHORT, folder)
    assert result.resumed == 3 and not other.exists() and not folder.exists()


def test_a_step_that_changed_the_weights_in_part_is_never_kept(tmp_path, monkeypatch, caplog):
    """The run goes back to the checkpoint before, and says so."""
    average = state.MovingAverage.update
    calls = []

    def broken(self):
        calls.append(1)
        if len(calls) == 5:
            raise Cancelled
        average(self)

    monkeypatch.setattr(state.MovingAverage, "update", broken)
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, every=3, keep=1)
    monkeypatch.undo()

    assert "stopped after step 4 and could not be kept there; it goes on from step 3" in caplog.text
    assert same(run(SHORT, tmp_path, every=3, keep=1), run(SHORT))


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path / "good", cancel_at(2))
    checkpoint = load_checkpoint(checkpoint_files(tmp_path / "good")[0])
    name = next(name for name in checkpoint.tensors if name.startswith("trained."))
    checkpoint.tensors[name].fill_(torch.nan)

    with pytest.raises(FileError, match="Expected finite weights"):
        checkpoints_module.save_checkpoint(tmp_path / "bad" / "step_000001.safetensors", checkpoint)

    assert not (tmp_path / "bad").exists() or not list((tmp_path / "bad").iterdir())


def test_a_checkpoint_is_a_plain_safetensors_file_that_says_what_it_is_of(tmp_path):
    with pytest.raises(Cancelled):
        run(SHORT, tmp_path, cancel_at(2))
    path = checkpoint_files(tmp_path)[0]

    checkpoint = load_checkpoint(path)

    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    assert checkpoint.step == 2 and checkpoint.identity["plan"] == SHORT.to_dict()
    (tmp_path / "none.safetensors").write_bytes(b"none")
    with pytest.raises(FileError, match="Expected a sound file"):
        load_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "{",
        "[]",
        '{"step": 1, "identity": {}}',
        '{"step": "1", "identity": {}, "numbers": {}}',
        '{"step": 1, "identity": [], "numbers": {}}',
        '{"step": 1, "identity": {}, "numbers": []}',
    ],
)
def test_a_sound_file_of_something_else_is_no_checkpoint(tmp_path, header):
    metadata = {} if header is None else {checkpoints_module.HEADER: header}
    files.save_tensors(tmp_path / "a.safetensors", {"weight": torch.ones(2)}, metadata)

    with pytest.raises(FileError, match=r"Expected a checkpoint at '.*a\.safetensors', got: .*Remove it"):
        load_checkpoint(tmp_path / "a.safetensors")
