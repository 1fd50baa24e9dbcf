"""What all tests share: the real host, one process for the whole session."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gallery import Failure, check_host
from tools.host.process import HostProcess


def pytest_configure() -> None:
    """Take Ctrl-C as usual, also where a shell that runs the tests in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def host_path() -> Path:
    """Return the folder of the real host; without one the test fails, as skipping would prove nothing."""
    folder = os.environ.get("COMFYUI_PATH")
    if not folder:
        pytest.fail("no ComfyUI to test in: run `python3 gallery.py test`, or set COMFYUI_PATH to its folder")
    try:
        return check_host(Path(folder), "COMFYUI_PATH")
    except Failure as failure:
        pytest.fail(str(failure))


@pytest.fixture(scope="session")
def host(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """Run the real host with the pack and some test nodes in it, on the CPU; `host.client` talks to it."""
    base = tmp_path_factory.mktemp("host")
    (base / "custom_nodes").mkdir()
    for name in ("wait_node.py", "family_nodes.py"):
        shutil.copy(Path(__file__).with_name(name), base / "custom_nodes")
    with HostProcess(host_path, base_directory=base, cpu=True) as process:
        yield process
