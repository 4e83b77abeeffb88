"""Label maps as seen from the cells of a feature map.

A cluster id is constant over a cell, so the pixels of each label in each cell need to be counted only once: every
further K and seed then costs a sum over cells instead of a pass over pixels, with exactly the same counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Dataset
from bench.features import SplitMaps
from bench.metrics import Counts, count_pixels
from bench.packed import PackedMaps
from bench.records import IGNORE

__all__ = ["CellLabels", "LabelPixels", "count_cells", "label_pixels"]


LabelPixels = tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.unsignedinteger[Any]]]
"""The pixels of each label in each cell of a picture, as (cell, label, pixels) of the non-zero entries.

label: 0 … classes-1, and `classes` for void.
"""


def count_cells(dataset: Dataset, maps: SplitMaps, index: int, mask: NDArray[np.bool_] | None = None) -> LabelPixels:
    """The labels in the cells of picture `index` of the maps.

    mask: its foreground, bool (H, W); what lies outside is one more cell, the last.
    """
    label = dataset.label(maps.names[index])
    return label_pixels(*maps.cells(index), maps.grids[index], label, len(dataset.classes), mask)


def label_pixels(
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    grid: tuple[int, int],
    label: NDArray[np.uint8],
    classes: int,
    mask: NDArray[np.bool_] | None = None,
) -> LabelPixels:
    """The labels (H, W) in cells of a grid (h, w): rows (H,) and columns (W,) say in which each pixel lies.

    mask: bool (H, W); what lies outside is one more cell, the last.
    """
    cells = rows[:, None] * grid[1] + columns[None, :]
    number = grid[0] * grid[1]
    if mask is not None:
        cells[~mask] = number
    counts = count_pixels(cells, label, number + (mask is not None), classes)
    cell, found = np.nonzero(counts)
    pixels = counts[cell, found]
    return cell.astype(np.int32), found.astype(np.uint8), pixels.astype(np.min_scalar_type(pixels.max()))


class _Pixels(Sequence[LabelPixels]):
    """`LabelPixels` of maps whose cells are the pixels, unpacked one at a time: kept, each takes 6 bytes."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._labels, self._masks = PackedMaps(), PackedMaps()

    def append(self, label: NDArray[np.uint8], mask: NDArray[np.bool_] | None) -> None:
        """One picture more: all of them with a mask, or none."""
        self._labels.append(np.where(label == IGNORE, np.uint8(self._classes), label))
        if mask is not None:
            self._masks.append(mask.view(np.uint8))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        label = self._labels[index].reshape(-1)
        cell = np.arange(len(label), dtype=np.int32)
        if len(self._masks):
            cell[self._masks[index].reshape(-1) == 0] = len(label)
        return cell, label, np.ones(len(label), np.uint8)


@dataclass(frozen=True, slots=True)
class CellLabels:
    """The labels of every picture by cell, see `LabelPixels`."""

    classes: int
    pictures: Sequence[LabelPixels]

    @classmethod
    def read(
        cls, dataset: Dataset, maps: SplitMaps, names: Iterable[str], masks: Iterable[NDArray[np.bool_]] | None = None
    ) -> CellLabels:
        """Count the labels of every picture's cells; `names` are those of `maps`, perhaps under a progress bar.

        masks: the foreground of every picture, bool (H, W); what lies outside is one more cell, the last.
        """
        classes, foregrounds = len(dataset.classes), repeat(None) if masks is None else masks
        if maps.tap.frame == "label" and maps.tap.stride == 1:
            pixels = _Pixels(classes)
            for name, mask in zip(names, foregrounds, strict=False):
                pixels.append(dataset.label(name), mask)
            return cls(classes, pixels)
        pictures = (
            count_cells(dataset, maps, index, mask)
            for index, (_, mask) in enumerate(zip(names, foregrounds, strict=False))
        )
        return cls(classes, tuple(pictures))

    def occurring(self) -> set[int]:
        """The numbers of the classes that have a pixel."""
        seen: set[int] = set()
        for _, label, _ in self.pictures:
            seen.update(np.flatnonzero(np.bincount(label, minlength=self.classes)[: self.classes]).tolist())
        return seen

    def count(self, assignments: Sequence[NDArray[np.integer[Any]]], clusters: int) -> Counts:
        """Per-picture counts of cluster maps (h, w) with ids below `clusters`, flat where there is a cell more."""
        columns = self.classes + 1
        tables = []
        for ids, (cell, label, pixels) in zip(assignments, self.pictures, strict=True):
            index = ids.ravel()[cell].astype(np.int64) * columns + label
            # float64 weights are exact: no count comes near 2^53
            sums = np.bincount(index, weights=pixels, minlength=clusters * columns)
            tables.append(sums.astype(np.int32).reshape(clusters, columns))
        return Counts.from_dense(tables)
