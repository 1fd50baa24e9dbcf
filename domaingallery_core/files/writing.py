"""Files that are written whole or not at all, and tensors in them that are known to be sound.

What is being written has a name such as ".lora.safetensors.1f2e3d4c.part", and its writer holds a lock on it.
So a later start can tell what a killed process left behind from what another process writes now.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ..errors import FileError, shown

#: The key of the checksum in a file's metadata.
CHECKSUM = "domaingallery.sha256"
#: The file in a folder whose lock says that the folder is in use.
LOCK = ".lock"
#: Seconds in which a file that is being written is left alone.
JUST_NOW = 2.0
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_file(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file so that at any moment, a kill or a full disk leaves either all of it or what was there.

    Args:
        replace: whether a file of this name is replaced.

    Raises:
        FileError: the disk refuses.
        FileExistsError: there is a file of this name, and it is not to be replaced.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise refused(path, error) from error
    try:
        with locked(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if part.read_bytes() != content:
                raise OSError("it reads back as something else")
            if sys.platform == "win32":  # an open file cannot be moved there
                file.close()
            _place(part, path, replace)
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


def refused(path: Path, error: Exception) -> FileError:
    """Return the error for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return FileError(
        f"Expected to write {shown(path.name)} into {str(path.parent)[-200:]!r}, got: {reason}. "
        "Check the name, and the space and the rights there."
    )


def _place(part: Path, path: Path, replace: bool) -> None:
    if replace:
        os.replace(part, path)
    elif sys.platform == "win32":
        os.rename(part, path)  # which does not replace there
    else:
        try:
            os.link(part, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            path.open("xb").close()
            os.replace(part, path)


@contextlib.contextmanager
def locked(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """Open a file and hold its lock, which the system releases however the holder ends.

    Raises:
        OSError: another process holds it.
    """
    with path.open(mode) as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**30)  # far from what is written
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claim a folder for this process, by a lock on a file in it; gives False if another one has it.

    The folder is made where it is not there, and removed at the end if nothing else is in it. A disk that
    refuses is as if another process had it.
    """
    lock = folder / LOCK
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(locked(lock, "ab"))
            # Whoever had it may have removed the file between opening and locking.
            ours = os.fstat(file.fileno()).st_ino == lock.stat().st_ino
        except OSError:
            ours = False
        try:
            yield ours
        finally:
            if ours:
                if sys.platform == "win32":  # an open file cannot be removed there
                    file.close()
                release(folder)


def release(folder: Path) -> None:
    """Remove the lock file of a folder, and the folder if there is nothing else in it."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; what is being written now stays."""
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime < JUST_NOW:  # its writer may be about to lock it
                continue
            with locked(part, "rb+"):
                if sys.platform != "win32":
                    part.unlink()
            part.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, replace: bool = True
) -> None:
    """Write tensors and metadata as a safetensors file with a checksum; equal contents are equal files.

    Raises:
        FileError, FileExistsError: as `write_file`.
    """
    stored = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    header, data = _split(save(stored, dict(metadata)))
    header["__metadata__"] = dict(sorted(metadata.items()))
    header["__metadata__"][CHECKSUM] = _checksum(header, data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-len(text) % 8 + len(text))
    write_file(path, len(text).to_bytes(8, "little") + text + data, replace=replace)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata that `save_tensors` wrote.

    Raises:
        FileError: the file is absent, damaged, or another one.
    """
    try:
        content = path.read_bytes()
        header, data = _split(content)
        metadata = header.get("__metadata__", {})
        if metadata.pop(CHECKSUM, None) != _checksum(header, data):
            raise ValueError("its checksum is another one")
        with torch.inference_mode(False):
            return load(content), metadata
    except (OSError, SafetensorError, ValueError, AttributeError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"Expected a sound file at {str(path)!r}, got: {reason}. Remove it.") from error


def read_tensors(
    path: Path, what: str = "a LoRA in safetensors format", otherwise: str = "Choose another."
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file from anywhere, which may have no checksum.

    Raises:
        FileError: the file is absent or damaged.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            metadata.pop(CHECKSUM, None)
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (OSError, SafetensorError) as error:
        raise FileError(f"Expected {what} at {str(path)!r}, got: {error}. {otherwise}") from error


def _split(content: bytes) -> tuple[dict, bytes]:
    """Return the header and the data of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    if not 0 < size <= len(content) - 8:
        raise ValueError("its header is cut off")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _checksum(header: dict, data: bytes) -> str:
    """Return the SHA-256 of a header without a checksum, and of the data."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
