"""The layouts of other pictures: what a score owes to where things usually lie.

Each picture takes the map of ids of another one, its donor, stretched by nearest neighbour to its own label map, and
is counted as if the ids were its own. Ids that were given, such as the background of objects, go along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Dataset, Painting
from bench.features import SplitMaps
from bench.images import cell_index
from bench.labels import CellLabels, LabelPixels, label_pixels
from bench.metrics import DRAWS, Counts, count_pixels
from bench.objects import paint_objects, tally

__all__ = ["Exchange", "donors"]

_STREAM = 3
"""What the generator is for: halves and permutations have the streams 1 and 2 (`bench.metrics`)."""

_COARSE = 4
"""Pixels per cell from which labels are counted by cell first, and kept for all seeds and numbers of clusters."""


def donors(names: Sequence[str], draws: int = DRAWS) -> list[NDArray[np.int64]]:
    """For each draw the number of the picture whose layout each picture takes, int64 (P,), never its own.

    A random cycle through all pictures (Sattolo 1986), drawn for their sorted names: the same for every row of the same
    pictures, in whatever order they are listed. Empty for a single picture.
    """
    if len(names) < 2:
        return []
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__))
    found = []
    for draw in range(draws):
        cycle = by_name[np.random.default_rng([_STREAM, draw]).permutation(len(names))]
        donor = np.empty(len(names), np.int64)
        donor[cycle] = np.roll(cycle, 1)
        found.append(donor)
    return found


class Exchange:
    """The pictures of one split, each under the layouts of its donors.

    maps: those whose cells a painting's `cells` are. own: reads the labels of their cells. What does not depend on the
    ids is counted once, for all seeds and numbers of clusters.
    """

    def __init__(self, dataset: Dataset, maps: SplitMaps, own: Callable[[], CellLabels]) -> None:
        self._dataset, self._maps, self._own = dataset, maps, own
        self._donors = donors(maps.names)
        self._labels: dict[object, list[CellLabels]] = {}
        self._tables: dict[object, NDArray[np.int64]] = {}

    def counts(
        self,
        painting: Painting,
        clusters: int,
        key: object = None,
        masks: Callable[[], Sequence[NDArray[np.uint8]]] | None = None,
    ) -> list[Counts]:
        """Counts of every draw, ids below `clusters`; none for a single picture.

        masks: reads the foreground of every picture, non-zero uint8 (H, W), for a painting that has something around
        it. key: what tells this foreground from others.
        """
        if not self._donors:
            return []
        if painting.objects is not None:
            assert masks is not None
            assert painting.around is not None
            tables = self._tables_of(key, masks)
            ids = painting.objects
            return [
                paint_objects(own, ids[donor], painting.around, clusters)
                for own, donor in zip(tables, self._donors, strict=True)
            ]
        if painting.cells is not None:
            return self._of_cells(painting, clusters, key, masks)
        if not isinstance(painting.pixels, Sequence):
            return []
        return self._of_pixels(painting.pixels, clusters)

    def _of_cells(
        self, painting: Painting, clusters: int, key: object, masks: Callable[[], Sequence[NDArray[np.uint8]]] | None
    ) -> list[Counts]:
        cells, around = painting.cells, painting.around or 0
        assert cells is not None
        if self._maps.vectors * _COARSE > sum(h * w for h, w in self._maps.sizes):
            seen = None if masks is None else masks()
            return self._of_pixels(_Upsampled(cells, self._maps, seen, around), clusters)
        flat = [ids.reshape(-1) if masks is None else np.append(ids, around) for ids in cells]
        if key not in self._labels:
            self._labels[key] = self._cell_labels(None if masks is None else masks())
        return [
            labels.count([flat[number] for number in donor], clusters)
            for labels, donor in zip(self._labels[key], self._donors, strict=True)
        ]

    def _cell_labels(self, masks: Sequence[NDArray[np.uint8]] | None) -> list[CellLabels]:
        """The labels of every picture in the cells of its donor, for each draw."""
        pictures: list[list[LabelPixels]] = [[] for _ in self._donors]
        for number, label in self._receivers():
            for draw, donor in enumerate(self._donors):
                pictures[draw].append(self._in_cells_of(donor[number], number, label, masks))
        return [CellLabels(len(self._dataset.classes), tuple(of_draw)) for of_draw in pictures]

    def _in_cells_of(
        self, donor: int, number: int, label: NDArray[np.uint8], masks: Sequence[NDArray[np.uint8]] | None
    ) -> LabelPixels:
        maps = self._maps
        if masks is None and self._shape(donor) == self._shape(number):
            return self._own().pictures[number]
        rows, columns = _stretch(maps.sizes[donor], label.shape)
        in_rows, in_columns = maps.cells(donor)
        height, width = maps.grids[donor]
        mask = None if masks is None else masks[donor][rows[:, None], columns[None, :]] > 0
        return label_pixels(
            in_rows[rows], in_columns[columns], (height, width), label, len(self._dataset.classes), mask
        )

    def _shape(self, number: int) -> tuple[object, ...]:
        maps = self._maps
        return maps.sizes[number], maps.extents[number], maps.grids[number]

    def _tables_of(self, key: object, masks: Callable[[], Sequence[NDArray[np.uint8]]]) -> NDArray[np.int64]:
        """Pixels of each label outside and inside the foreground of the donor: (draws, P, 2, classes + 1)."""
        if key not in self._tables:
            found = masks()
            tables: list[list[NDArray[np.int64]]] = [[] for _ in self._donors]
            for number, label in self._receivers():
                for draw, donor in enumerate(self._donors):
                    mask = _stretched(found[donor[number]], label.shape) > 0
                    tables[draw].append(tally(mask, label, len(self._dataset.classes)))
            self._tables[key] = np.array(tables)
        return self._tables[key]

    def _of_pixels(self, pixels: Sequence[NDArray[np.integer[Any]]], clusters: int) -> list[Counts]:
        classes = len(self._dataset.classes)
        tables: list[list[NDArray[np.int64]]] = [[] for _ in self._donors]
        for number, label in self._receivers():
            for draw, donor in enumerate(self._donors):
                ids = _stretched(pixels[donor[number]], label.shape)
                tables[draw].append(count_pixels(ids, label, clusters, classes))
        return [Counts.from_dense(of_draw) for of_draw in tables]

    def _receivers(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for number, name in enumerate(self._maps.names):
            yield number, self._dataset.label(name)


class _Upsampled(Sequence[NDArray[np.integer[Any]]]):
    """Maps of ids at the pictures' own sizes, from those of cells, one at a time."""

    def __init__(
        self,
        cells: Sequence[NDArray[np.integer[Any]]],
        maps: SplitMaps,
        masks: Sequence[NDArray[np.uint8]] | None,
        around: int,
    ) -> None:
        """masks: the foreground of every picture; pixels outside have the id `around`."""
        self._cells, self._maps, self._masks, self._around = cells, maps, masks, around

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: Any) -> Any:
        rows, columns = self._maps.cells(index)
        ids = self._cells[index][rows[:, None], columns[None, :]]
        return ids if self._masks is None else np.where(self._masks[index] > 0, ids, self._around)


def _stretch(donor: tuple[int, ...], receiver: tuple[int, ...]) -> list[NDArray[np.intp]]:
    """The row and the column of a donor (H, W) at each row and column of a receiver, by nearest neighbour."""
    return [cell_index(side, own, own, 1) for side, own in zip(receiver, donor, strict=True)]


def _stretched(map_: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A map (H, W) brought to another size by nearest neighbour."""
    if map_.shape == shape:
        return map_
    rows, columns = _stretch(map_.shape, shape)
    return np.asarray(map_[rows[:, None], columns[None, :]])
