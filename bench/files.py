"""Files that are either whole or absent: written beside their place, flushed to the disk, then given their name."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bench.errors import StorageError

__all__ = ["Data", "lock", "make_folder", "write_atomic", "write_new"]

log = logging.getLogger(__name__)

Data = bytes | Callable[[BinaryIO], None]
"""What a file shall hold, or a function that writes it to an open binary file."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES}


def write_atomic(path: Path, data: Data, *, fix: str = "choose another folder") -> None:
    """Write a file, replacing an older one of that name in a single step; the folder is made where it is missing.

    Whatever happens on the way, `path` holds either the old content or the new, and no other file is left behind.

    fix: what the user can do when the folder cannot be used; it ends the message.
    Raises StorageError for every OSError (disk full, folder not writable); other errors of a writing function pass.
    """
    with _storage_errors(path, fix), _temporary(path, data) as temporary:
        temporary.replace(path)
        _sync_folder(path.parent)


def write_new(path: Path, data: Data, *, fix: str = "choose another folder") -> None:
    """Write a file that must not exist yet, safely against other processes that want the same name.

    Raises FileExistsError when the name is taken (the file there is left as it is), else as `write_atomic`.
    """
    with _storage_errors(path, fix), _temporary(path, data) as temporary:
        _link_or_claim(temporary, path)
        _sync_folder(path.parent)


def make_folder(path: Path, *, fix: str = "choose another folder") -> None:
    """Make a folder, with those above it, where it is missing. Raises StorageError; `fix` as of `write_atomic`."""
    with _storage_errors(path, fix):
        _make_folder(path)


def lock(descriptor: int) -> bool:
    """Take an open file or folder for this process alone, until it is closed; False where another process has it.

    The system takes the lock back when the process ends, however it ends, and nothing is left behind. True also where
    the system or its disk has no locks: nobody can be told from anybody there.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        log.debug("nothing can be locked here: %s", error)
    return True


@contextlib.contextmanager
def _temporary(path: Path, data: Data) -> Iterator[Path]:
    """A complete, flushed file in the folder of `path`, removed at the end unless it was renamed."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # kept apart from the FileExistsError of `write_new`
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder") from None


def _link_or_claim(temporary: Path, path: Path) -> None:
    """Give the file its name if the name is free: by a hard link, or by claiming the name where there are no links."""
    try:
        os.link(temporary, path)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        temporary.replace(path)
    except BaseException:
        path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut; some systems and network disks cannot, and need not."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextlib.contextmanager
def _storage_errors(path: Path, fix: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {_reason(error)}{fix}") from error


def _reason(error: OSError) -> str:
    if error.errno in _FULL:
        return "the disk or quota is full; free some space or "
    if error.errno in _REFUSED:
        return "its folder does not allow it; make it writable or "
    text = error.strerror or str(error)
    return f"{text[:1].lower()}{text[1:]}; "
