"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from bench.errors import StorageError
from bench.files import write_atomic, write_new

WRITERS = [write_atomic, write_new]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("write", WRITERS)
def test_bytes_and_functions_are_written(tmp_path, write):
    write(tmp_path / "new" / "a", b"whole")
    write(tmp_path / "new" / "b", lambda file: file.write(b"by hand") and None)
    assert (tmp_path / "new" / "a").read_bytes() == b"whole"
    assert (tmp_path / "new" / "b").read_bytes() == b"by hand"
    assert names(tmp_path / "new") == ["a", "b"]


def test_atomic_replaces_and_new_refuses(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_new(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("fault", [RuntimeError("killed"), KeyboardInterrupt()])
def test_a_writer_that_dies_half_way_leaves_nothing(tmp_path, write, fault):
    def dies(file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        raise fault

    with pytest.raises(type(fault)):
        write(tmp_path / "a", dies)
    assert names(tmp_path) == []


def test_a_replacement_that_dies_keeps_the_old_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def dies(file: BinaryIO) -> None:
        file.write(b"new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomic(path, dies)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "full; free some space"),
        (errno.EDQUOT, "full"),
        (errno.EROFS, "writable"),
        (errno.EACCES, "writable"),
        (errno.EIO, "error"),
    ],
)
def test_a_disk_that_fails_is_one_line_with_the_fix(tmp_path, monkeypatch, write, number, words):
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match=words) as caught:
        write(tmp_path / "a", b"data", fix="take --results DIR")
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "a") in message
    assert message.endswith("take --results DIR")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_met_while_writing(tmp_path):
    def to_full(file: BinaryIO) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(StorageError, match="full"):
        write_atomic(tmp_path / "a", to_full)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("inside", ["file/a", "file/deeper/a"])
def test_a_folder_that_is_a_file(tmp_path, write, inside):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"director|folder"):
        write(tmp_path / inside, b"")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="make it writable"):
        write_atomic(tmp_path / "a", b"")


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writers_gets_the_name(tmp_path, monkeypatch, links):
    if not links:

        def refuses(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "no links here")

        monkeypatch.setattr(os, "link", refuses)
    won: list[int] = []

    def race(number: int) -> None:
        try:
            write_new(tmp_path / "a", b"%d" % number)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a").read_bytes() == b"%d" % won[0]
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_new(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
