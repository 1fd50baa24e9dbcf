"""A real ComfyUI process with this pack mounted in it: nothing is copied, the host's folder is only read."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path

from gallery import PACK, bytecode_folder

from .client import COLOURS, HostClient, HostError

LOOPBACK = "127.0.0.1"
IMPORT_TIME = re.compile(r"([\d.]+) seconds( \(IMPORT FAILED\))?: (.*)")


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    """Tell whether a loopback port can be listened on."""
    with socket.socket() as probe:
        if os.name != "nt":  # there the option would let taken ports pass; elsewhere only those just closed
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def has_accelerator(python: str = sys.executable) -> bool:
    """Tell whether the host can compute on something better than the CPU.

    Importing torch takes seconds, so it is asked only where an NVIDIA driver answers.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        if driver.cuInit(0) != 0:
            return False
    except OSError:
        return False
    probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0


def mount(pack: Path, base: Path, name: str = "domaingallery") -> Path:
    """Make `pack` appear in a base directory's custom_nodes: by a symbolic link, on Windows by a junction.

    A junction needs no rights. An extra_model_paths file would not do: the host loads every sub-folder of a
    custom_nodes path, so the checkout's neighbours would load as well.
    """
    folder = base / "custom_nodes"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    if link.exists() and link.resolve() == pack.resolve():
        return link
    unmount(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(pack), str(link))  # type: ignore
    else:
        link.symlink_to(pack, target_is_directory=True)
    return link


def unmount(link: Path) -> None:
    """Remove a mount made by `mount`, never what it points to.

    Raises:
        HostError: a real folder or file is in its place.
    """
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        try:
            os.rmdir(link)  # a junction; a folder with something in it stays
        except OSError as error:
            raise HostError(f"expected the mounted pack at {link}, got a folder; move it away") from error


def stop_on_terminate() -> None:
    """Let a request to terminate unwind the program like an exit, so that it stops what it started."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))


class HostProcess:
    """A ComfyUI server process on a loopback port; use it in a `with` block.

    Args:
        host: the host's folder; only read.
        base_directory: where models, inputs, outputs and users live; if None a temporary folder, which `stop`
            removes.
        pack: the folder to mount as a custom node, or None for the bare host.
        port: a free one if None.
        cpu: compute on the CPU; if None, when there is nothing better.
        arguments: further command-line arguments of the host.
        log: the file that gets the host's output; in the base directory if None.
    """

    def __init__(
        self,
        host: str | Path,
        *,
        base_directory: str | Path | None = None,
        pack: Path | None = PACK,
        port: int | None = None,
        cpu: bool | None = None,
        arguments: tuple[str, ...] = (),
        log: str | Path | None = None,
        python: str = sys.executable,
    ) -> None:
        self.host = Path(host).resolve()
        self.pack = pack
        self.port = free_port() if port is None else port
        self.cpu = cpu
        self.arguments = arguments
        self.python = python
        self._temporary = base_directory is None
        self.base = Path(base_directory or tempfile.mkdtemp(prefix="domaingallery-")).resolve()
        self.log = Path(log).resolve() if log else self.base / "host.log"
        self._process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @cached_property
    def client(self) -> HostClient:
        return HostClient(self.address, log=self.log)

    def __enter__(self) -> HostProcess:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """Return the command line that starts the host."""
        cpu = not has_accelerator(self.python) if self.cpu is None else self.cpu
        return [
            self.python, str(self.host / "main.py"),
            "--listen", LOOPBACK, "--port", str(self.port),
            "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{(self.base / 'user' / 'host.db').as_posix()}",
            "--disable-api-nodes", "--disable-auto-launch",
            *(["--cpu", "--use-pytorch-cross-attention"] if cpu else []),  # the faster attention there
            *self.arguments,
        ]  # fmt: skip

    def start(self, timeout: float = 300.0) -> None:
        """Start the host and wait until it answers.

        Raises:
            HostError: it did not start, or could not load the pack; the message ends with the log's tail.
        """
        for name in ("custom_nodes", "input", "models", "output", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            mount(self.pack, self.base)
        environment = dict(os.environ, PYTHONUNBUFFERED="1", **bytecode_folder(self.host))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.base, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **_own_group(),
            )  # fmt: skip
        self._wait_until_ready(time.monotonic() + timeout)
        if self.pack is not None:
            self.pack_import_seconds()

    def _wait_until_ready(self, deadline: float) -> None:
        while not self._answers():
            if not self.alive():
                raise HostError(f"the host stopped while starting\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"the host did not answer at {self.address} in time\n{self.log_tail()}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{self.address}/system_stats", timeout=5
            ):
                return True
        except (urllib.error.URLError, OSError):
            return False

    @property
    def pid(self) -> int:
        """The host's process id, 0 before `start`."""
        return self._process.pid if self._process else 0

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait until the host ends by itself and return its exit status."""
        return self._process.wait() if self._process else 0

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the host and, if its base directory was temporary, remove that. May be called twice."""
        self.__dict__.pop("client", None)
        if self._process is not None and self.alive():
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._temporary and self.base.exists():
            unmount(self.base / "custom_nodes" / "domaingallery")
            shutil.rmtree(self.base, ignore_errors=True)

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the host's output, without colours."""
        if not self.log.exists():
            return ""
        text = COLOURS.sub("", self.log.read_text(encoding="utf-8", errors="replace"))
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def pack_import_seconds(self) -> float:
        """Return the time that the pack added to the host's start, from the host's own log (steps of 0.1 s).

        Raises:
            HostError: the host could not import the pack.
        """
        folder = str(self.base / "custom_nodes" / "domaingallery")
        text = COLOURS.sub("", self.log.read_text(encoding="utf-8", errors="replace"))
        for seconds, failed, path in IMPORT_TIME.findall(text):
            if path.strip() == folder:
                if failed:
                    raise HostError(f"the host could not import the pack\n{_import_failure(text)}")
                return float(seconds)
        raise HostError(f"the host did not load the pack at {folder}\n{self.log_tail()}")


def _own_group() -> dict:
    """Return the Popen options that keep the terminal's Ctrl-C from the host; who started it stops it."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP")}  # noqa: B009
    return {"start_new_session": True}


def _import_failure(text: str) -> str:
    """Return the part of a host log between the first traceback and the import times."""
    start = max(text.find("Traceback (most recent call last)"), 0)
    return text[start:].partition("Import times for custom nodes")[0].strip()[-3000:]
