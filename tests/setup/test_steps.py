"""The steps of the set-up, with stand-ins for the installers: each once, and on from where it was stopped."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

import gallery
from gallery import Failure, NoNetwork
from tests.setup.stand_ins import make_host

EVERYTHING = ["make a virtual environment", "get ComfyUI", "get uv", "install packages"]


def test_a_first_run_does_every_step_and_a_second_none(installers):
    host = gallery.setup()

    assert gallery.is_host(host)
    assert installers.steps() == EVERYTHING
    assert gallery.setup() == host
    assert installers.steps() == []


def test_the_packages_are_those_of_the_host_the_pack_and_its_development(checkout, tmp_path):
    wanted = gallery.requirements(make_host(tmp_path / "host"))

    assert "torch==2.11.0" in wanted
    assert "wheel-of-the-host" in wanted
    assert any(line.startswith("peft>=") for line in wanted)
    assert any(line.startswith("pytest>=") for line in wanted)
    assert not [line for line in wanted if not line or line.startswith("#")]


@pytest.mark.parametrize("step", EVERYTHING)
@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit, NoNetwork])
def test_a_set_up_that_was_stopped_goes_on_where_it_was(installers, step, how):
    installers.failures[step] = how()
    with pytest.raises(how):
        gallery.setup()
    done = installers.steps()
    assert done[-1] == step
    assert not gallery.STAMP.exists()

    gallery.setup()

    left = ["get uv", "install packages"] if step == "install packages" else EVERYTHING[len(done) - 1 :]
    assert installers.steps() == left  # the stand-in has no uv, so that it is asked for again
    assert gallery.STAMP.exists()
    assert not gallery.UNFINISHED.exists()
    assert not list(gallery.cache_folder().glob("download-*"))


def test_packages_that_an_interrupted_run_left_are_laid_out_anew(installers):
    installers.failures["install packages"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gallery.setup()
    assert "--reinstall" not in installers.done[-1][1]

    gallery.setup()

    assert "--reinstall" in installers.done[-1][1]


def test_packages_are_not_laid_out_anew_when_only_the_network_was_missing(installers):
    installers.failures["install packages"] = NoNetwork("cannot")
    with pytest.raises(NoNetwork):
        gallery.setup()

    gallery.setup()

    assert "--reinstall" not in installers.done[-1][1]


def test_pip_installs_where_uv_cannot_be_had(installers):
    installers.failures["get uv"] = Failure("no wheel")

    gallery.setup()

    assert "pip" in installers.done[-1][1]
    assert "uv" not in installers.done[-1][1]


def test_a_broken_environment_is_made_anew(installers, checkout):
    gallery.setup()
    installers.steps()
    shutil.rmtree(checkout / ".venv" / "bin")

    gallery.setup()

    assert installers.steps()[0] == "make a virtual environment"


def test_other_requirements_are_installed(installers, checkout):
    gallery.setup()
    installers.steps()
    project = checkout / "pyproject.toml"
    project.write_text(project.read_text().replace("matplotlib>=3.9", "matplotlib>=3.10"))

    gallery.setup()

    assert installers.steps()[-1] == "install packages"


def test_two_set_ups_wait_for_each_other(checkout):
    order: list[str] = []

    def second() -> None:
        with gallery.locked(checkout / "lock"):
            order.append("second")

    with gallery.locked(checkout / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)

    assert order == ["first", "second"]
