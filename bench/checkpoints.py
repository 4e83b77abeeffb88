"""Reads a file of weights without running what is in it.

A torch file is a pickle, and a pickle can name any function to be called while it is read. `read_checkpoint` lets
torch's `weights_only` reader refuse whatever is not plain data. The few old releases that hold whole pickled modules
are read by a second reader, which rebuilds tensors and puts an inert object wherever the file names anything else.

Neither reader compares the checksums that a zip keeps of its entries, so a flipped bit in a tensor would be a weight
like any other: they are compared here, once a file.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import logging
import pickle
import re
import tarfile
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.errors import CheckpointError

__all__ = ["read_checkpoint"]

log = logging.getLogger(__name__)


def read_checkpoint(path: Path, *, legacy_pickle: bool = False) -> dict[str, Any]:
    """What a checkpoint file holds, tensors on the CPU.

    path: a file of `torch.save` (zip or the format before torch 1.6) or a `.safetensors` file.
    legacy_pickle: replace pickled classes that are not plain data by inert stubs instead of refusing the file; nothing
        outside a short list of tensor and array rebuilders is imported or called.

    Raises CheckpointError, one line, for a file that is missing, damaged (in a zip: an entry that is not what its CRC
    says, which is named), of another kind, or refused. Other formats keep no checksums.
    """
    in_zip = _check_kind(path)
    found: Any
    try:
        if path.suffix == ".safetensors":
            found = _read_safetensors(path)
        elif legacy_pickle:
            found = _read_with_stubs(path)
        else:
            with torch.serialization.safe_globals(_plain_data_globals()):
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=in_zip)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # a damaged or hostile file can raise anything
        raise CheckpointError(_explain(path, error)) from error
    if not isinstance(found, Mapping):
        what = "pickled object" if isinstance(found, _Inert) else type(found).__name__
        raise CheckpointError(
            f"{path} holds a {what}, expected a dictionary of tensors; save torch.save(model.state_dict(), path)"
        )
    return dict(found)


def _check_kind(path: Path) -> bool:
    """True for a zip file. Raises CheckpointError for what cannot be a checkpoint, by its first bytes."""
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; check the path")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    if path.suffix == ".safetensors":
        return False
    for recognised, what, fix in _STRANGERS:
        if recognised(head):
            raise CheckpointError(f"{path} is {what}, not a checkpoint; {fix}")
    if tarfile.is_tarfile(path):  # also torch's oldest format, which is read by code that trusts the file
        raise CheckpointError(f"{path} is a tar archive, not a checkpoint; unpack it and name the file inside")
    if head.startswith(b"PK"):
        _check_zip(path)
        return True
    if not head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path} is no file of torch.save (it begins with {head[:8]!r}); check that it is the weights file"
        )
    return False


_STRANGERS: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (
        lambda head: head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")),
        "a web page",
        "the download gave an error or consent page: fetch it in a browser, or with the direct link",
    ),
    (lambda head: head.startswith(b"version https://git-lfs"), "a Git LFS pointer", "run `git lfs pull`"),
    (
        lambda head: head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")),
        "a compressed archive",
        "unpack it and name the file inside",
    ),
)


def _check_zip(path: Path) -> None:
    """Raises CheckpointError for a damaged zip, for TorchScript, and for an ordinary zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rpartition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
    if "constants.pkl" in members:
        raise CheckpointError(
            f"{path} is a TorchScript program, which would be run; expected weights: save its state_dict() instead"
        )
    if "data.pkl" not in members:
        raise CheckpointError(f"{path} is a zip archive, not a checkpoint; unpack it and name the file inside")
    about = path.stat()
    damaged = _damaged_entry(path, about.st_ino, about.st_size, about.st_mtime_ns)
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: its entry {damaged} is not what was written (its CRC-32 differs); download or copy it "
            "again"
        )


_BLOCK = 1 << 20


@lru_cache(maxsize=64)
def _damaged_entry(path: Path, inode: int, size: int, modified: int) -> str:
    """The first entry of a zip whose bytes are not those that its CRC-32 was taken of, "" for none.

    A file is read several times on its way into a network, and compared once: inode, size and modified (ns) tell
    whether it is still the same one. `torch.serialization.set_crc32_options(False)` leaves all CRCs 0: nothing can be
    compared there.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not any(entry.CRC for entry in entries):
            return ""
        for entry in entries:
            try:
                with archive.open(entry) as content:
                    while content.read(_BLOCK):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
                return entry.filename
    return ""


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs the package safetensors; run `pip install safetensors`") from error
    return dict(load_file(path))


def _explain(path: Path, error: Exception) -> str:
    """One line for what a reader raised."""
    text = " ".join(str(error).split())
    refused = re.search(r"(?:Unsupported global: GLOBAL|Trying to (?:load|call|instantiate) \S*)\s+([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and ("global" in text.lower() or "weights only" in text.lower()):
        what = f"a pickled {refused.group(1)}" if refused else "pickled objects beside tensors"
        return (
            f"{path} holds {what}, refused because reading it could run code; where you trust the file, save the "
            "weights alone in its own project: torch.save(model.state_dict(), path)"
        )
    return f"{path} is damaged or incomplete ({type(error).__name__}: {text[:120]}); download or save it again"


# --- plain data that torch does not know -----------------------------------------------------------------

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy 1 and numpy 2 say that scalars and arrays are rebuilt: a file names the one it was written under."""

_DTYPE_CLASSES = tuple(
    getattr(np.dtypes, f"{kind}DType")
    for kind in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")
)


def _array_rebuilders() -> dict[str, Callable[..., Any]]:
    """numpy's rebuilders of scalars and arrays, taken from what numpy itself pickles them with."""
    return {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}


def _plain_data_globals() -> list[Any]:
    """What `weights_only` may rebuild beside tensors: numpy scalars and arrays, and argparse's options."""
    named = [(call, f"{module}.{name}") for name, call in _array_rebuilders().items() for module in _ARRAY_MODULES]
    return [*named, np.ndarray, np.dtype, *_DTYPE_CLASSES, argparse.Namespace]


# --- the reader with inert stubs -------------------------------------------------------------------------


class _Inert:
    """Stands for an object whose class is not on the list: takes whatever the pickle does to it, and does nothing."""

    dump_patches = False  # torch asks every pickled module whether to write a patch of its source

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _ignore(self, *args: object, **kwargs: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self


def _latin1(text: str, encoding: str) -> bytes:
    """`codecs.encode` as protocol 2 uses it for bytes, and for nothing else."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _rebuilders() -> dict[tuple[str, str], Any]:
    """Everything the reader with stubs may call, by the (module, name) written in the file."""
    tensors = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    arrays = {**_array_rebuilders(), "ndarray": np.ndarray, "dtype": np.dtype}
    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _latin1,
        ("torch", "Size"): torch.Size,
        **{("torch._utils", name): getattr(torch._utils, name) for name in tensors},
        **{(module, name): call for module in ("numpy", *_ARRAY_MODULES) for name, call in arrays.items()},
        **{("numpy.dtypes", kind.__name__): kind for kind in _DTYPE_CLASSES},
    }


def _stub_pickle(replaced: set[str]) -> types.SimpleNamespace:
    """What `torch.load` takes for a pickle module. Names of the classes replaced by stubs are added to `replaced`."""
    known = _rebuilders()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            # torch's subclass of this class resolves the names of its own storages before it asks here
            if (module, name) in known:
                return known[module, name]
            replaced.add(f"{module}.{name}")
            return _Inert

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="stub_pickle")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that the source of a pickled module cannot be compared; the module is not wanted at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read_with_stubs(path: Path) -> Any:
    replaced: set[str] = set()
    with _quiet():
        found = torch.load(
            path,
            map_location="cpu",
            weights_only=False,
            pickle_module=_stub_pickle(replaced),
            encoding="latin1",  # Python 2 wrote its strings as bytes
        )
    if replaced:
        log.info("%s: not read, replaced by inert stubs: %s", path.name, ", ".join(sorted(replaced)))
    return found
