"""Run folders of trainings: `record.json` says what is trained, `checkpoints/` holds where it got to.

The record is written once, before the first step. A folder belongs to one run: another run does not write into it,
and a resumed one must be the same in everything that changes the result.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import SettingError, StorageError
from bench.files import write_atomic

__all__ = ["RunFolder", "differences", "latest", "new_folder"]

log = logging.getLogger(__name__)

_FORMAT = 1
_FIX = "choose another folder with --output"
_FREE = ("versions", "device", "settings.run.")
"""What a resumed run may have otherwise: entries of the record, or groups of them."""

_SINCE = tuple(f"{name}: nothing there" for name in ("threads", "deterministic", "data.without_foreground"))
"""How lines of differences begin that tell of an older record: nobody knows what such a run was begun with."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run. fix: what can be done where it cannot be used; it ends the messages."""

    path: Path
    fix: str = _FIX

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def record_path(self) -> Path:
        return self.path / "record.json"

    def record(self) -> dict[str, Any] | None:
        """What the run is, None for a folder without a record; StorageError for one that cannot be read."""
        try:
            record = json.loads(self.record_path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.record_path} cannot be read ({error}): {self.fix}") from error
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise StorageError(f"{self.record_path} is no record of a training run: {self.fix}")
        return record

    def open(self, record: Mapping[str, Any], *, resume: bool) -> None:
        """Begin the run here, or go on with it.

        record: plain data. Raises SettingError when the folder holds a run and `resume` is not set, or holds a run with
        other settings (each is named); StorageError when it cannot be written.
        """
        wanted = json.loads(json.dumps({"format": _FORMAT, **record}))
        there = self.record()
        if there is None:
            if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
                raise SettingError(f"{self.path} holds checkpoints of a run without record.json: {self.fix}")
            write_atomic(self.record_path, (json.dumps(wanted, indent=1) + "\n").encode(), fix=self.fix)
            return
        if not resume:
            raise SettingError(
                f"{self.path} holds a run of {there.get('producer')} already: go on with it by --resume, or {self.fix}"
            )
        lines = differences(there, wanted)
        changed = [line for line in lines if not line.startswith((*_FREE, *_SINCE))]
        if changed:
            raise SettingError(
                f"the run in {self.path} has other settings ({'; '.join(changed)}): resume it with its own, or "
                f"{self.fix}"
            )
        since = [line for line in lines if line.startswith(_SINCE)]
        if since:
            log.warning("the record in %s is of an older version; it goes on with: %s", self.path, "; ".join(since))
        versions = [line for line in lines if line.startswith("versions")]
        if versions:
            log.warning("the run in %s was begun with other versions: %s", self.path, "; ".join(versions))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two records have otherwise, one text "name: value there, value here" each, in order of names."""
    before, now = dict(_flat(there)), dict(_flat(here))
    return [
        f"{name}: {_shown(before, name)} there, {_shown(now, name)} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) or (name in before) != (name in now)
    ]


def new_folder(root: Path, stem: str) -> RunFolder:
    """A folder of its own below `root`, made now: STEM, or STEM-2, STEM-3, … where that is taken."""
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StorageError(f"{path} cannot be made ({error.strerror}): {_FIX}") from error


def latest(root: Path, stem: str) -> RunFolder | None:
    """The last folder that `new_folder` made for this stem, None where there is none."""
    found = None
    number = 1
    while (path := root / (stem if number == 1 else f"{stem}-{number}")).is_dir():
        found, number = RunFolder(path), number + 1
    return found


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "nothing"
