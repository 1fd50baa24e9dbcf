"""Files are whole or not there, whoever writes and whatever ends the writing."""

from __future__ import annotations

import multiprocessing
import os
import stat

import pytest
import torch

from domaingallery_core.errors import FileError
from domaingallery_core.files import writing as files
from domaingallery_core.files.writing import claimed, clear_leftovers, load_tensors, save_tensors, write_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_appears_under_its_name_only_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch, replace):
    """A copy into place would be there in part after a kill: nothing may be written under the name itself."""
    path, seen = tmp_path / "a.safetensors", []
    synced, opened = os.fsync, []

    def fsync(descriptor):
        synced(descriptor)
        seen.append((names(tmp_path), os.fstat(descriptor).st_size, os.fstat(descriptor).st_ino))

    real_open = type(path).open

    def spying(self, mode="r", *rest, **more):
        opened.append((self.name, mode))
        return real_open(self, mode, *rest, **more)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(type(path), "open", spying)
    write_file(path, b"x" * 1000, replace=replace)

    [(there, size, inode)] = seen
    assert path.name not in there and size == 1000
    assert path.stat().st_ino == inode, "the file was copied and not moved"
    assert [name for name, mode in opened if mode != "rb"] != [path.name]
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("moment", ["fsync", "replace", "link", "write"])
def test_whatever_ends_a_writing_leaves_what_was_there(tmp_path, monkeypatch, moment):
    class Ended(BaseException):
        pass

    def end(*_):
        raise Ended

    path = tmp_path / "a.txt"
    write_file(path, b"old")
    if moment == "write":
        monkeypatch.setattr(files, "locked", end)
    else:
        monkeypatch.setattr(files.os, moment, end)
    with pytest.raises(Ended):
        write_file(path if moment != "link" else tmp_path / "b.txt", b"new", replace=moment != "link")

    assert names(tmp_path) == ["a.txt"] and path.read_bytes() == b"old"


def test_an_error_in_clearing_up_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(13, "Permission denied")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.Path, "unlink", refuse)
    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.txt", b"new")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_name_that_no_disk_takes_is_an_error_that_says_so(tmp_path, name):
    with pytest.raises(FileError, match=r"Expected to write .*, got: .*Check the name"):
        write_file(tmp_path / name, b"x")


def test_a_file_in_the_place_of_a_folder_is_an_error_that_says_so(tmp_path):
    (tmp_path / "loras").write_bytes(b"")

    for replace in (True, False):
        with pytest.raises(FileError, match=r"Expected to write 'a\.txt'"):
            write_file(tmp_path / "loras" / "a.txt", b"x", replace=replace)


def test_a_folder_that_cannot_be_made_is_an_error_that_says_why(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "mkdir", refuse)
    with pytest.raises(
        FileError, match=r"Expected to write 'a\.txt' into '.*loras', got: Permission denied\."
    ):
        write_file(tmp_path / "loras" / "a.txt", b"x")


def test_a_file_that_is_there_is_not_replaced_unless_asked(tmp_path):
    write_file(tmp_path / "a.txt", b"old")

    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a.txt", b"new", replace=False)

    assert (tmp_path / "a.txt").read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


def test_a_file_that_is_there_is_replaced_unless_it_is_said_otherwise(tmp_path):
    for content in (b"old", b"new"):
        write_file(tmp_path / "a.txt", content)
    for value in (1.0, 2.0):
        save_tensors(tmp_path / "b", {"x": torch.full((2,), value)}, {})

    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert load_tensors(tmp_path / "b")[0]["x"].tolist() == [2, 2]
    with pytest.raises(FileExistsError):
        save_tensors(tmp_path / "b", {"x": torch.ones(2)}, {}, replace=False)


def test_on_a_disk_without_links_a_file_is_not_replaced_either(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    write_file(tmp_path / "a.txt", b"old", replace=False)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a.txt", b"new", replace=False)

    assert (tmp_path / "a.txt").read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_no_disk_without_links(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "link", full)
    with pytest.raises(FileError, match="No space left"):
        write_file(tmp_path / "a.txt", b"new", replace=False)

    assert names(tmp_path) == []


def test_tensors_come_back_with_their_metadata_and_equal_ones_are_equal_files(tmp_path):
    shared = torch.randn(4)
    tensors = {"b": shared, "a": shared[:2], "none": torch.zeros(0), "half": torch.ones(3).half()}

    save_tensors(tmp_path / "1", tensors, {"z": "1", "a": "ü"})
    save_tensors(tmp_path / "2", dict(reversed(tensors.items())), {"a": "ü", "z": "1"})
    found, metadata = load_tensors(tmp_path / "1")

    assert metadata == {"a": "ü", "z": "1"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_no_flipped_bit_passes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"weight": torch.arange(3.0)}, {"step": "4"})
    content = path.read_bytes()

    for place in range(len(content)):
        for bit in (0, 5):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                tensors, metadata = load_tensors(path)
            except FileError as error:
                assert "Expected a sound file" in str(error)
            else:  # only what means the same, such as another space at the end of the header, may pass
                assert metadata == {"step": "4"} and tensors["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header is cut off"),
        (b"\0" * 7, "its header is cut off"),
        (b"\0" * 8, "its header is cut off"),
        (b"\xff" * 64, "its header is cut off"),
        (b"\x03\0\0\0\0\0\0\0{}", "its header is cut off"),
        (b"\x02\0\0\0\0\0\0\0{}", "its checksum is another one"),
        (b"\x02\0\0\0\0\0\0\0[]", ""),
        (None, "No such file or directory"),
    ],
)
def test_a_file_of_something_else_is_an_error_that_says_so(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a").write_bytes(content)

    with pytest.raises(FileError, match=rf"Expected a sound file at '.*a', got: {reason}.*\. Remove it\."):
        load_tensors(tmp_path / "a")


def hold(folder, pipe):
    with claimed(folder) as ours:
        pipe.send(ours)
        pipe.recv()


def test_a_folder_is_of_one_process_until_it_ends_however_it_does(tmp_path):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=hold, args=(folder, theirs))
    child.start()
    assert ours.recv() is True
    with claimed(folder) as free:
        assert not free
    child.kill()
    child.join()

    with claimed(folder) as free:
        assert free and names(folder) == [files.LOCK]
    assert not folder.exists()


def test_a_claimed_folder_with_something_in_it_stays_without_the_lock(tmp_path):
    with claimed(tmp_path / "run") as ours:
        assert ours
        (tmp_path / "run" / "step").write_bytes(b"")

    assert names(tmp_path / "run") == ["step"]


def test_a_folder_inside_of_one_that_is_not_there_is_ours(tmp_path):
    with claimed(tmp_path / "runs" / "run") as ours:
        assert ours and names(tmp_path / "runs") == ["run"]


def test_a_folder_that_cannot_be_made_is_not_ours(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with claimed(tmp_path / "file" / "run") as ours:
        assert not ours


def test_leftovers_are_cleared_but_for_those_just_begun_or_being_written(tmp_path):
    for name in ("old", "new", "held"):
        (tmp_path / f".{name}.part").write_bytes(b"")
    for name in ("old", "held"):
        os.utime(tmp_path / f".{name}.part", (0, 0))

    with files.locked(tmp_path / ".held.part", "rb+"):
        clear_leftovers(tmp_path)

    assert names(tmp_path) == [".held.part", ".new.part"]


def test_all_leftovers_are_cleared_whatever_is_beside_them(tmp_path):
    parts = [tmp_path / f".{i}.part" for i in range(20)]
    for part in parts:
        part.write_bytes(b"")
    for part in parts[::2]:
        os.utime(part, (0, 0))

    clear_leftovers(tmp_path)

    assert names(tmp_path) == sorted(part.name for part in parts[1::2])


def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path):
    write_file(tmp_path / "a", b"")
    (tmp_path / "b").touch()

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_the_data_of_a_file_begin_at_a_multiple_of_eight(tmp_path):
    """So they can be mapped as they are."""
    for length in range(8):
        save_tensors(tmp_path / "x", {"a": torch.ones(3)}, {"note": "n" * length})
        assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0


def test_what_was_begun_just_now_is_left_alone(tmp_path):
    """Its writer may not have locked it yet."""
    part = tmp_path / ".x.1.part"
    part.write_bytes(b"")

    clear_leftovers(tmp_path)

    assert part.exists()
