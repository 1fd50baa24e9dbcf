"""A host that is terminated, or closed by Ctrl-C, keeps the training that runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.nodes.test_real_host import graph
from tools.host.client import Interrupted
from tools.host.process import HostError, HostProcess


def training():
    """Return a prompt that trains for minutes."""
    prompt = graph()
    prompt["options"]["inputs"]["similarity_weight"] = 0.0
    prompt["train"]["inputs"] |= {"steps": 4000, "learning_rate": 1e-6}
    return prompt


def close_while_training(process, number):
    """Send a signal in the middle of a training; return the step that it had come to."""
    prompt, steps = training(), []
    with pytest.raises((HostError, Interrupted)):
        for event in process.client.submit(prompt):
            if event.kind == "progress" and event.node == "train":
                steps.append(event.value)
                if len(steps) == 5:
                    os.kill(process.pid, number)
    timer = threading.Timer(150, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    status = process.wait()
    timer.cancel()
    assert status != -signal.SIGKILL
    return steps[-1]


def test_a_host_that_is_closed_keeps_the_training_that_runs(host_path, tmp_path):
    folder = tmp_path / "output" / "domaingallery" / "checkpoints"
    before = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with HostProcess(host_path, base_directory=tmp_path, cpu=True) as process:
            reached = close_while_training(process, number)
            log = process.log.read_text(errors="replace")

        files = sorted(path for path in folder.rglob("*") if path.is_file())
        kept = files[-1]
        assert all(path.match("step_*.safetensors") for path in files)
        assert int(kept.stem[5:]) >= reached > before
        assert "The host closes; the training is kept first." in log
        before = int(kept.stem[5:])
