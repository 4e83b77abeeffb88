"""Label maps of a row's first seed, at each picture's own size, as palette PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.errors import InternalError, StorageError
from bench.features import SplitMaps
from bench.images import write_label
from bench.records import IGNORE
from bench.store import Row, Store

__all__ = ["save"]


def save(row: Row, store: Store, maps: SplitMaps) -> Path:
    """Write what the row's headline matching predicts into a folder beside the row; returns the folder.

    Pixels of clusters that no class took (one-to-one, K above the number of classes) are 255.
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
    ends = np.cumsum([h * w for h, w in maps.grids])
    for index, ids in enumerate(np.split(arrays["assignments"], ends[:-1])):
        rows, columns = maps.cells(index)
        cells = classes[ids].reshape(maps.grids[index])
        write_label(folder / f"{maps.names[index]}.png", cells[rows[:, None], columns[None, :]])
    return folder
