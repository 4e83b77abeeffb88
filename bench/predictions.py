"""Which id every pixel of a picture has, and label maps of them as palette PNGs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import registry
from bench.contracts import Painting
from bench.errors import InternalError, StorageError
from bench.features import SplitMaps
from bench.files import write_atomic
from bench.images import write_label
from bench.plan import ProtocolChoice
from bench.records import IGNORE
from bench.store import Row, Store, arrays_of
from bench.work import MethodWork

__all__ = ["are_saved", "classes_of", "paint", "save", "write"]

_DONE = "classes.json"
"""What is written last: the class of each cluster in the files beside it."""

_FIX = "choose another --results"


def save(row: Row, store: Store, work: MethodWork, choice: ProtocolChoice, settings: Any) -> Path:
    """Write what the row's headline matching predicts into a folder beside the row; returns the folder.

    A last file there, `classes.json`, says that all are written (see `are_saved`).

    choice: its protocol. settings: the row's. Pixels of clusters that no class took (one-to-one, K above the number of
    classes) are 255.
    """
    folder = _folder(row)
    painting = _painting(arrays_of(row, store), work.maps("eval"))
    if painting is None:
        painting = registry.load(choice.card.predict)(work, settings, arrays_of(row, store))
    write(folder, work, painting, settings, classes_of(row), fix=_FIX)
    write_atomic(folder / _DONE, json.dumps(classes_of(row).tolist()).encode(), fix=_FIX)
    return folder


def are_saved(row: Row, names: Sequence[str]) -> bool:
    """Whether `save` has written all pictures of a row, by the classes that its clusters have today."""
    folder = _folder(row)
    try:
        painted = json.loads((folder / _DONE).read_bytes())
    except (OSError, ValueError):
        return False
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*.png")}
    return painted == classes_of(row).tolist() and there >= {f"{name}.png" for name in names}


def _folder(row: Row) -> Path:
    if row.path is None:
        raise InternalError("predictions are written for rows that were saved")
    return row.path.parent / f"{row.path.stem}-predictions"


def write(
    folder: Path,
    work: MethodWork,
    painting: Painting,
    settings: Any,
    classes: NDArray[np.uint8],
    *,
    fix: str,
    palette: NDArray[np.uint8] | None = None,
) -> None:
    """Write a palette PNG of every scored picture, at its own size.

    classes: uint8, what stands in the file for each id. palette: uint8 (256, 3), VOC's when not given. fix: what to do
    when the folder cannot be written (StorageError).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"predictions cannot be written to {folder} ({error}): {fix}") from error
    for name, ids in zip(work.maps("eval").names, paint(work, painting, settings), strict=True):
        write_label(folder / f"{name}.png", classes[ids], palette)


def classes_of(row: Row) -> NDArray[np.uint8]:
    """The class of each cluster of the row's first seed by its headline rule, 255 for those that no class took."""
    match = np.array(row.per_seed[0]["scores"][row.headline["rule"]]["match"])
    return np.where(match < 0, IGNORE, match).astype(np.uint8)


def paint(work: MethodWork, painting: Painting, settings: Any) -> Iterator[NDArray[np.integer[Any]]]:
    """The ids of every pixel (H, W) of each scored picture; settings: those the painting was made with."""
    if painting.pixels is not None:
        yield from painting.pixels
        return
    maps = work.maps("eval").alone(painting.which)
    ids = iter(painting.objects) if painting.objects is not None else _of_cells(painting.cells or (), maps)
    if painting.around is None:
        yield from ids
        return
    for own, mask in zip(ids, work.masks(settings.with_own_foreground), strict=True):
        yield np.where(mask, own, painting.around)


def _painting(arrays: Mapping[str, NDArray[Any]], maps: SplitMaps) -> Painting | None:
    """What a row's arrays say of the pictures that it scored; None where only what was learnt is kept."""
    around = int(arrays["around"]) if "around" in arrays else None
    if "objects" not in arrays and "assignments" not in arrays:
        return None
    if "assignments" not in arrays:
        return Painting(objects=arrays["objects"], around=around)
    which = int(arrays["which"]) if "which" in arrays else 0
    grids = maps.alone(which).grids
    ends = np.cumsum([h * w for h, w in grids])
    blocks = zip(np.split(arrays["assignments"], ends[:-1]), grids, strict=True)
    return Painting(cells=[ids.reshape(grid) for ids, grid in blocks], around=around, which=which)


def _of_cells(cells: Sequence[NDArray[np.integer[Any]]], maps: SplitMaps) -> Iterator[NDArray[np.integer[Any]]]:
    """Ids of every pixel, from those of the cells (h, w)."""
    for index, ids in enumerate(cells):
        rows, columns = maps.cells(index)
        yield ids[rows[:, None], columns[None, :]]
