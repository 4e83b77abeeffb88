"""Label maps of a row's first seed, at each picture's own size, as palette PNGs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import InternalError, StorageError
from bench.features import SplitMaps
from bench.images import write_label
from bench.records import IGNORE
from bench.settings import ObjectSettings
from bench.store import Row, Store
from bench.work import MethodWork

__all__ = ["save"]


def save(row: Row, store: Store, work: MethodWork, settings: Any) -> Path:
    """Write what the row's headline matching predicts into a folder beside the row; returns the folder.

    settings: the row's. Pixels of clusters that no class took (one-to-one, K above the number of classes) are 255.
    """
    if row.path is None:
        raise InternalError("predictions are written for rows that were saved")
    arrays = store.arrays(row)
    match = np.array(row.per_seed[0]["scores"][row.headline["rule"]]["match"])
    classes = np.where(match < 0, IGNORE, match).astype(np.uint8)
    folder = row.path.parent / f"{row.path.stem}-predictions"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"predictions cannot be written to {folder} ({error}): choose another --results") from error
    maps = work.maps("eval")
    seed = row.per_seed[0]["seed"]
    around = arrays.get(f"seed{seed}_around")
    painted = _cells(arrays, maps) if "assignments" in arrays else iter(arrays[f"seed{seed}_objects"])
    if around is not None:
        painted = _inside(painted, around, work, settings)
    for name, ids in zip(maps.names, painted, strict=True):
        write_label(folder / f"{name}.png", classes[ids])
    return folder


def _cells(arrays: Mapping[str, NDArray[Any]], maps: SplitMaps) -> Iterator[NDArray[np.integer[Any]]]:
    """Cluster ids of every pixel, from those of the cells."""
    ends = np.cumsum([h * w for h, w in maps.grids])
    for index, ids in enumerate(np.split(arrays["assignments"], ends[:-1])):
        rows, columns = maps.cells(index)
        yield ids.reshape(maps.grids[index])[rows[:, None], columns[None, :]]


def _inside(
    ids: Iterator[NDArray[np.integer[Any]]],
    around: NDArray[np.integer[Any]],
    work: MethodWork,
    settings: ObjectSettings,
) -> Iterator[NDArray[np.integer[Any]]]:
    """The ids of every picture (one, or of each pixel) inside its foreground, and another one around it."""
    how = replace(settings, foreground="adapter") if settings.foreground == "auto" else settings
    for own, mask in zip(ids, work.masks(how), strict=True):
        yield np.where(mask, own, around)
