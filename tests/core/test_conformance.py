"""The numbers of the authors' released code, where the host is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOST = os.environ.get("COMFYUI_PATH", "")


@pytest.mark.timeout(900)  # half a minute of work, on machines that may be busy
@pytest.mark.skipif(not HOST, reason="COMFYUI_PATH names no host")
@pytest.mark.parametrize("folder", ["public_eps", "public_v"])
def test_losses_gradients_and_chains_are_those_of_the_released_code(folder):
    """Run in a process of its own, since the host takes a process over."""
    command = [sys.executable, "benchmarks/conformance.py", f"tests/reference_vectors/{folder}"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_core_does_not_import_the_host():
    code = (
        "import domaingallery_core.trainer, sys; "
        "print([n for n in sys.modules if n.split('.')[0] in ('comfy', 'peft')])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
