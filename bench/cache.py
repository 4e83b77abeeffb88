"""A content-addressed cache of arrays on disk.

An entry is a folder named by the SHA-256 of its record: plain data that names everything that changes the arrays. It is
written beside its place and renamed when complete, and its checksums are verified when it is opened, so that a torn,
damaged or foreign entry is never read: it is said, ignored and written anew.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import StorageError

__all__ = ["LARGEST", "Cache", "Entry", "Keeper", "Writer", "code_digest", "folder_of", "record_key"]

log = logging.getLogger(__name__)

_CHUNK = 1 << 24
LARGEST = 32 << 30
"""Bytes: no entry is larger than this, nor than half of the free disk."""


def record_key(record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a record's canonical JSON."""
    return hashlib.sha256(_canonical(record).encode()).hexdigest()


@functools.cache
def code_digest(*names: str) -> str:
    """SHA-256 (hex) of the source files of modules (`bench.features`) and of folders of modules (`bench.networks.*`).

    The files are read once in a process. A module without a file of its own, such as one in an archive, adds nothing.
    """
    digest = hashlib.sha256()
    for name in names:
        for file in _sources(name):
            content = file.read_bytes()
            digest.update(f"{name} {file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name.removesuffix(".*"))
    if spec is None:
        return []
    if not name.endswith(".*"):
        return [file for file in [Path(spec.origin or "")] if file.is_file()]
    return [file for folder in spec.submodule_search_locations or () for file in sorted(Path(folder).glob("*.py"))]


def folder_of(target: str) -> str:
    """What `code_digest` is asked for the code of "package.module:name": its folder, or a module that lies in none."""
    module = target.partition(":")[0]
    package = module.rpartition(".")[0]
    return f"{package}.*" if package else module


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete entry; `arrays` gives shape and dtype by name."""

    folder: Path
    record: Mapping[str, Any]
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

    def array(self, name: str, *, private: bool = False) -> NDArray[Any]:
        """The whole array, memory-mapped read-only; private: what is written to it stays in memory."""
        shape, dtype = self.arrays[name]
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(self.folder / f"{name}.bin", dtype, mode="c" if private else "r", shape=shape)

    def blocks(self, name: str, lengths: Iterable[int]) -> Iterator[NDArray[Any]]:
        """Consecutive blocks of `lengths` rows, read one at a time: memory holds one block, not the mapped file."""
        shape, dtype = self.arrays[name]
        width = int(np.prod(shape[1:]))
        try:
            with (self.folder / f"{name}.bin").open("rb") as stream:
                for length in lengths:
                    yield np.fromfile(stream, dtype, count=length * width).reshape(length, *shape[1:])
        except (OSError, ValueError) as error:
            raise StorageError(
                f"the cache entry {self.folder} went away while it was read ({error}): run the command again, and "
                "clear the cache only when nothing runs"
            ) from error


class Cache:
    """The cache below one folder; the folder is made when the first entry is written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def entries_root(self) -> Path:
        """Where entries lie, and whatever else the cache may forget at any time."""
        return self.root / "entries"

    def _place(self, record: Mapping[str, Any]) -> Path:
        return self.entries_root / record_key(record)

    def holds(self, record: Mapping[str, Any]) -> bool:
        """True when an entry with this record exists (its content is verified only by `find`)."""
        return (self._place(record) / "meta.json").is_file()

    def find(self, record: Mapping[str, Any]) -> Entry | None:
        """The verified entry of this record, or None; a damaged one is said and ignored."""
        folder = self._place(record)
        if not folder.exists():
            return None
        try:
            return _open(folder, record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cache entry %s cannot be used and is made anew: %s", folder, error)
            return None

    def room_for(self, nbytes: int) -> bool:
        """The stated rule: an entry may take at most half of the free disk, and at most `LARGEST` bytes."""
        return nbytes <= min(LARGEST, self.free() // 2)

    def free(self) -> int:
        """Free bytes on the disk that holds the cache."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def writer(self, record: Mapping[str, Any]) -> Writer:
        """Start an entry; nothing is visible before `Writer.commit`. Raises OSError when the disk refuses."""
        return Writer(self._place(record), record)

    def keeper(self, record: Mapping[str, Any]) -> Keeper:
        """Start an entry that nobody depends on: where the disk refuses, that is said and the work goes on."""
        return Keeper(self, record)

    def entries(self) -> Iterator[tuple[Path, int]]:
        """(folder, bytes) of every entry, complete or left behind."""
        for folder in sorted(self.entries_root.glob("*")):
            yield folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def clear(self) -> int:
        """Remove every entry; returns the bytes freed."""
        freed = sum(size for _, size in self.entries())
        shutil.rmtree(self.entries_root, ignore_errors=True)
        return freed


def _open(folder: Path, record: Mapping[str, Any]) -> Entry:
    meta = json.loads((folder / "meta.json").read_text())
    if _canonical(meta["record"]) != _canonical(record):
        raise ValueError("it belongs to another record")
    arrays = {name: _facts(facts) for name, facts in meta["arrays"].items()}
    for name, (shape, dtype) in arrays.items():
        file = folder / f"{name}.bin"
        if file.stat().st_size != dtype.itemsize * int(np.prod(shape)):
            raise ValueError(f"{file.name} is not as long as promised")
        if _checksum(file) != meta["arrays"][name]["crc32"]:
            raise ValueError(f"the checksum of {file.name} is wrong")
    return Entry(folder, record, arrays)


def _facts(facts: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return tuple(facts["shape"]), np.dtype(facts["dtype"])


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


class Writer:
    """An entry in the making: arrays are appended in blocks along their first axis, then committed or dropped."""

    def __init__(self, place: Path, record: Mapping[str, Any]) -> None:
        self._place = place
        self._record = record
        self._folder = place.parent / f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}"
        self._folder.mkdir(parents=True)
        self._files: dict[str, Any] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def append(self, name: str, block: NDArray[Any]) -> None:
        """Add rows to the array `name`; all its blocks share dtype and trailing dimensions."""
        block = np.ascontiguousarray(block)
        facts = self._facts.get(name)
        if facts is None:
            facts = {"shape": [0, *block.shape[1:]], "dtype": block.dtype.str, "crc32": 0}
            self._facts[name] = facts
            self._files[name] = (self._folder / f"{name}.bin").open("wb")
        data: memoryview = block.reshape(-1).view(np.uint8).data
        self._files[name].write(data)
        facts["crc32"] = zlib.crc32(data, facts["crc32"])
        facts["shape"][0] += len(block)

    def commit(self) -> Entry:
        """Make the entry visible and return it. One that another process completed meanwhile is kept, ours dropped."""
        for file in self._files.values():
            file.flush()
            file.close()
        meta = {"record": self._record, "arrays": self._facts}
        (self._folder / "meta.json").write_text(json.dumps(meta, sort_keys=True))
        try:
            self._folder.rename(self._place)
        except OSError:
            if _is_whole(self._place, self._record):
                self.drop()
            else:
                shutil.rmtree(self._place, ignore_errors=True)
                self._folder.rename(self._place)
        return Entry(self._place, self._record, {name: _facts(facts) for name, facts in self._facts.items()})

    def drop(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            # closing flushes, which fails again on a full disk; the bytes are unwanted
            try:
                file.close()
            except OSError:
                continue
        shutil.rmtree(self._folder, ignore_errors=True)


class Keeper:
    """A writer that gives up where the disk refuses: it says so once, and what it is then given is not kept."""

    def __init__(self, cache: Cache, record: Mapping[str, Any]) -> None:
        self._root = cache.root
        self._writer: Writer | None = None
        with self._giving_up():
            self._writer = cache.writer(record)

    def append(self, name: str, block: NDArray[Any]) -> None:
        """As `Writer.append`."""
        if self._writer is not None:
            with self._giving_up():
                self._writer.append(name, block)

    def commit(self) -> Entry | None:
        """As `Writer.commit`; None where it was given up or dropped."""
        entry = None
        if self._writer is not None:
            with self._giving_up():
                entry = self._writer.commit()
                self._writer = None
        return entry

    def drop(self) -> None:
        """Remove what was written and not committed."""
        if self._writer is not None:
            self._writer.drop()
            self._writer = None

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", self._root, error)
            self.drop()


def _is_whole(place: Path, record: Mapping[str, Any]) -> bool:
    try:
        _open(place, record)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
