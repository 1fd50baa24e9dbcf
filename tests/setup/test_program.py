"""The program itself, without stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gallery


def run_gallery(
    *arguments: str, folder: Path = gallery.PACK, **environment: str
) -> subprocess.CompletedProcess:
    command = [sys.executable, "gallery.py", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_real_set_up_has_nothing_left_to_do(host_path):
    run_gallery("setup", COMFYUI_PATH=str(host_path))
    started = time.monotonic()

    done = run_gallery("setup", COMFYUI_PATH=str(host_path))

    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"Ready after \d s; ComfyUI is in {re.escape(str(host_path.resolve()))}\n", done.stdout
    )
    assert time.monotonic() - started < 20


def test_serve_refuses_a_port_in_use(host_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        done = run_gallery("serve", "--port", str(port), COMFYUI_PATH=str(host_path))

    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr


def test_offline_the_set_up_of_a_new_checkout_says_so(tmp_path):
    for name in ("gallery.py", "pyproject.toml"):
        shutil.copy(gallery.PACK / name, tmp_path)
    cache = str(tmp_path / "cache")
    offline = {
        "PIP_INDEX_URL": "http://127.0.0.1:9",  # nothing listens there
        **{
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_CONFIG_FILE": os.devnull,
        },
        **{"COMFYUI_PATH": "", "XDG_CACHE_HOME": cache, "LOCALAPPDATA": cache, "HOME": cache},
    }

    done = run_gallery("setup", folder=tmp_path, **offline)

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "gallery.py: cannot get ComfyUI: no network, or no package index there; connect and run this again"
    ]


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_a_request_to_terminate_reaches_the_program_that_runs():
    sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    script = (
        "import gallery, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))\n"
        f"gallery.run([sys.executable, '-c', {sleeper!r}])\n"
    )
    outer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=gallery.PACK, stdout=subprocess.PIPE, text=True
    )
    assert outer.stdout is not None
    inner = int(outer.stdout.readline())

    outer.send_signal(signal.SIGTERM)

    assert outer.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(inner, 0)
