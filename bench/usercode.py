"""`--method path/to/file.py:factory`: a method that lives in a user's file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import InputError, UnknownNameError
from bench.records import AdapterRequest, MethodCard
from bench.registry import near

__all__ = ["build", "card_of_file"]


def card_of_file(file: Path, factory: str) -> MethodCard:
    """A card for the factory of a file; the file is run only when the method is built."""
    if not file.is_file():
        raise InputError(f"--method {file}:{factory}: there is no file {file}; expected path/to/file.py:factory")
    return MethodCard(
        name=f"{file.stem}.{factory}",
        summary=f"{factory} of {file}",
        factory="bench.usercode:build",
        trainable=False,
        file=file,
        file_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def build(request: AdapterRequest) -> Any:
    """Run the file and call its factory without arguments; it returns an adapter (see `bench.backbone.Backbone`)."""
    assert request.card.file is not None
    file = request.card.file.resolve()
    factory_name = request.card.name.rpartition(".")[2]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as for a script: the file may import its neighbours, now or later
    module = _run(file)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownNameError(
            f"{file} has no function {factory_name!r}.{near(factory_name, functions)} It defines: "
            f"{', '.join(functions) or 'none'}"
        )
    with _faults_of(file):
        adapter = factory()
    missing = [name for name in ("taps", "preprocess", "pad_to") if not hasattr(adapter, name)]
    if missing:
        raise InputError(
            f"{factory_name} of {file} returned a {type(adapter).__name__} without {', '.join(missing)}: wrap the "
            "network, `return bench.backbone.Backbone(network, stride=32, channels=512)`"
        )
    return adapter


def _run(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"densebench_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _faults_of(file):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _faults_of(file: Path) -> Iterator[None]:
    """What the user's code raises becomes one line that names the place in their file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        raise InputError(f"{place} raised {type(error).__name__}: {error}; correct the file") from error
