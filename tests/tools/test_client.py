"""The client against a real host."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

import pytest

from gallery import PACK
from tools.host.client import Event, HostClient, HostError, Interrupted, PromptError
from tools.host.process import HostProcess, free_port, has_accelerator, mount, port_is_free, unmount
from tools.host.serve import chosen_port


def wait(**inputs: object) -> dict:
    """Return a prompt with the test node in it."""
    defaults = {"steps": 3, "seed": 0, "ending": "well", "note": ""}
    return {"1": {"class_type": "TestWait", "inputs": defaults | inputs, "_meta": {"title": "Wait"}}}


def picture(**inputs: object) -> dict:
    """Return a prompt that saves one red picture."""
    red = {"width": 8, "height": 8, "batch_size": 1, "color": 0xFF0000}
    return {
        "1": {"class_type": "EmptyImage", "inputs": red},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "red"} | inputs},
    }


def is_idle(client: HostClient) -> bool:
    queue = client.json("/queue")
    return not queue["queue_running"] and not queue["queue_pending"]


def until(condition, seconds: float = 10.0) -> bool:
    """Wait for a condition and tell whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_prompt_reports_its_progress_and_returns_its_outputs(host):
    events: list[Event] = []

    outputs = host.client.run(wait(note="hello"), on_event=events.append)

    assert outputs == {"1": {"note": ["hello"]}}
    assert [(event.value, event.max) for event in events if event.kind == "progress"] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert [event.text for event in events if event.kind == "text"] == ["step 1", "step 2", "step 3"]
    assert {event.node for event in events if event.kind in ("node", "progress", "text", "output")} == {"1"}


def test_a_submission_can_be_followed_step_by_step(host):
    submission = host.client.submit(wait())

    kinds = [event.kind for event in submission]

    assert kinds[-1] == "output"
    assert submission.outputs["1"] == {"note": [""]}
    assert submission.seconds > 0.3


def test_a_saved_picture_can_be_fetched(host):
    (image,) = host.client.run(picture())["2"]["images"]

    assert host.client.view(**image).startswith(b"\x89PNG")
    assert (host.output / image["filename"]).is_file()


def test_the_workflow_is_stored_in_the_picture(host):
    (image,) = host.client.run(picture(filename_prefix="kept"), workflow={"version": 0.4})["2"]["images"]

    assert b'{"version": 0.4}' in host.client.view(**image)


def test_a_missing_file_is_an_http_error(host):
    with pytest.raises(urllib.error.HTTPError):
        host.client.view("nothing.png")


def test_object_info_describes_all_nodes_or_one(host):
    everything = host.client.object_info()

    assert {"KSampler", "TestWait"} <= everything.keys()
    assert host.client.object_info("TestWait") == {"TestWait": everything["TestWait"]}


def test_a_refused_prompt_names_node_class_input_and_reason(host):
    with pytest.raises(PromptError) as caught:
        host.client.run(wait(steps=0))

    error = caught.value
    assert (error.stage, error.node, error.class_type) == ("validation", "1", "TestWait")
    assert error.errors[0].input == "steps"
    assert "smaller than min" in error.message


def test_an_unknown_node_type_is_refused(host):
    with pytest.raises(PromptError, match="Nowhere"):
        host.client.run({"7": {"class_type": "Nowhere", "inputs": {}}})


def test_a_prompt_with_one_bad_output_does_not_run_the_good_one(host):
    both = wait(steps=1000) | {"2": wait(steps=0)["1"]}

    with pytest.raises(PromptError) as caught:
        host.client.run(both)

    assert caught.value.node == "2"
    assert until(lambda: is_idle(host.client))


def test_a_failing_node_is_named_with_its_message(host):
    with pytest.raises(PromptError) as caught:
        host.client.run(wait(ending="badly"))

    error = caught.value
    assert (error.stage, error.node, error.class_type) == ("execution", "1", "TestWait")
    assert error.message == "ValueError: expected a good ending"
    assert "wait_node.py" in error.traceback


def test_an_interrupt_from_elsewhere_is_reported(host):
    submission = host.client.submit(wait(steps=1000))
    threading.Timer(0.5, host.client.interrupt).start()

    with pytest.raises(Interrupted):
        list(submission)


def test_a_submission_can_interrupt_itself_even_while_it_waits(host):
    running, waiting = host.client.submit(wait(steps=1000)), host.client.submit(wait(steps=999))
    waiting.interrupt()
    next(iter(running))
    running.interrupt()

    for submission in (running, waiting):
        with pytest.raises(Interrupted):
            list(submission)
    assert is_idle(host.client)


def test_an_error_in_the_listener_interrupts_the_prompt(host):
    def listen(event: Event) -> None:
        if event.kind == "progress":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        host.client.run(wait(steps=1000), on_event=listen)

    assert until(lambda: is_idle(host.client))


def test_a_prompt_that_takes_too_long_is_interrupted(host):
    with pytest.raises(TimeoutError, match=r"0\.5 seconds"):
        host.client.run(wait(steps=1000), timeout=0.5)

    assert until(lambda: is_idle(host.client))
    assert host.client.run(wait(steps=1))


def test_the_host_tells_what_the_pack_adds_to_its_start(host):
    assert host.pack_import_seconds() < 5


def test_a_host_that_is_not_there_is_a_clear_error():
    with pytest.raises(HostError, match="does not answer"):
        HostClient(f"http://127.0.0.1:{free_port()}").submit(wait())


def test_the_hosts_folder_is_not_written_to(host, host_path):
    started = (host.base / "custom_nodes" / "wait_node.py").stat().st_mtime

    # Importing the host, as other tests do in this process, makes its empty input folders.
    files = [path for path in host_path.rglob("*") if path.is_file() or "input" not in path.parts]
    changed = [path for path in files if path.stat().st_mtime > started]

    assert not [path for path in changed if path.name != "__pycache__" and path.suffix != ".pyc"]


def test_a_host_that_does_not_start_shows_its_last_words(host_path, tmp_path):
    broken = HostProcess(host_path, base_directory=tmp_path, cpu=True, arguments=("--no-such-option",))

    with pytest.raises(HostError, match="--no-such-option"):
        broken.start()
    assert not broken.alive()


def test_a_temporary_base_goes_away_and_the_mounted_pack_stays(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "file.txt").write_text("kept")
    process = HostProcess(tmp_path, pack=pack, port=1)
    link = mount(pack, process.base)
    assert (link / "file.txt").read_text() == "kept"

    process.stop()
    process.stop()

    assert not process.base.exists()
    assert (pack / "file.txt").read_text() == "kept"


def test_a_mount_is_renewed_but_never_replaces_a_real_folder(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = mount(tmp_path / "one", tmp_path / "base")
    mount(tmp_path / "two", tmp_path / "base")
    assert link.resolve() == (tmp_path / "two").resolve()

    unmount(link)
    link.mkdir()
    (link / "work.txt").touch()

    with pytest.raises(HostError, match="move it away"):
        mount(tmp_path / "one", tmp_path / "base")
    assert (link / "work.txt").exists()


def test_serve_takes_the_wanted_port_or_any():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert not port_is_free(port)
        with pytest.raises(HostError, match=f"port {port} is in use"):
            chosen_port(port)
    assert port_is_free(chosen_port(None))
    with pytest.raises(HostError, match="port 70000 does not exist"):
        chosen_port(70000)


def test_no_driver_means_no_accelerator(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    monkeypatch.setattr("sys.platform", "linux")

    assert not has_accelerator()


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send Ctrl-C to another there")
def test_serve_lists_the_hosts_models_and_ends_with_ctrl_c(host_path, tmp_path):
    command = [sys.executable, "-m", "tools.host.serve", "--host", host_path, "--base", tmp_path]
    server = subprocess.Popen(command, cwd=PACK, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stdout is not None
    address = ""
    for line in server.stdout:
        if found := re.search(r"http://[\d.:]+", line):
            address = found[0]
        if str(Path(tmp_path) / "output") in line:
            break
    assert HostClient(address).system_stats()
    models = host_path / "models" / "loras"
    assert f"Adding extra search path loras {models}" in (tmp_path / "host.log").read_text(encoding="utf-8")

    server.send_signal(signal.SIGINT)

    assert server.wait(30) == 0
    with pytest.raises(HostError):
        HostClient(address).system_stats()
