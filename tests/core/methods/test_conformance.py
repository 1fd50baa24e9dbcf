"""The numbers of the authors' released code, where the host is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from reference import CASES

ROOT = Path(__file__).parents[3]
HOST = os.environ.get("COMFYUI_PATH", "")


#: Runs in a process of its own, since the host takes a process over.
PROGRAM = """
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.conformance import main
from benchmarks.unet_denoiser import find_host, host_unet
from tests.core.reference import CASES, write

torch.set_num_threads(1)
build = partial(host_unet, find_host(), dtype=torch.float64)
unseen = [write(Path(sys.argv[1]), name, build) for name in CASES]
given = [Path("tests/reference_vectors", name) for name in ("public_eps", "public_v")]
status = main([*map(str, [*given, *unseen])])
print("status", status)

file = unseen[1] / "lora.safetensors"
save_file({name: tensor * 1.001 for name, tensor in load_file(file).items()}, file)
print("status of a changed LoRA", main([str(unseen[1]), "--form", "core"]))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Run both forms over the given folders and over folders made just now by `tests/core/reference.py`."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("unseen"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )


@pytest.mark.timeout(900)  # a minute of work, on machines that may be busy
@pytest.mark.skipif(not HOST, reason="COMFYUI_PATH names no host")
def test_losses_gradients_and_chains_are_those_of_the_released_code(report):
    """Both forms agree with the given numbers, and with a second implementation where none are given."""
    assert "\nstatus 0\n" in report.stdout, report.stdout[-3000:] + report.stderr[-3000:]
    lines = [line.split("  ") for line in report.stdout.splitlines()]
    folders = {(line[0], line[1]) for line in lines if len(line) == 4 and line[0] in ("core", "host")}
    names = ("public_eps", "public_v", *CASES)
    assert folders == {(form, name) for form in ("core", "host") for name in names}


@pytest.mark.skipif(not HOST, reason="COMFYUI_PATH names no host")
def test_the_similarity_of_two_images_is_exactly_zero(report):
    before = report.stdout.partition("\nstatus")[0]
    lines = [line.split("  ") for line in before.splitlines() if "  two_images  " in line]
    errors = [line[3] for line in lines if "/similarity" in line[2]]

    assert len(errors) > 2 and set(errors) == {"0.00e+00"}


@pytest.mark.skipif(not HOST, reason="COMFYUI_PATH names no host")
def test_weights_that_are_off_by_a_thousandth_fail(report):
    assert report.stdout.rstrip().endswith("status of a changed LoRA 1")
    assert "too large" in report.stdout.partition("\nstatus")[2]


def test_the_core_does_not_import_the_host():
    code = (
        "import domaingallery_core.run.trainer, sys; "
        "print([n for n in sys.modules if n.split('.')[0] in ('comfy', 'peft')])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
