"""What `bench masks` writes beside the masks of a folder: how they were made, and which pictures have none."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.errors import StorageError

__all__ = ["FORMAT", "RECORD", "pictures_without", "read_record"]

FORMAT = 1
RECORD = "masks.json"


def read_record(path: Path) -> dict[str, Any] | None:
    """The record at a path: `format`, `settings` and `without`, names of pictures; None where there is none.

    Raises StorageError for a file that is damaged or something else.
    """
    fix = "restore it, or delete it and the masks beside it"
    try:
        record = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}): {fix}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("without"), list):
        raise StorageError(f"{path} is not what `bench masks` writes: {fix}")
    return record


def pictures_without(folder: Path) -> frozenset[str]:
    """The pictures of which the record of a folder of masks says that they hold too little foreground; none without."""
    path = folder / RECORD
    try:
        changed = path.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    return _without(path, changed)


@lru_cache(maxsize=8)
def _without(path: Path, changed: int) -> frozenset[str]:
    """changed: when the record was written, in ns."""
    record = read_record(path)
    return frozenset(record["without"]) if record else frozenset()
