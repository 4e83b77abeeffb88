"""Layouts of other pictures, against whole maps of ids that were stretched pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bench.contracts import Painting
from bench.exchange import Exchange, donors
from bench.images import cell_index
from bench.labels import CellLabels, label_pixels
from bench.metrics import Counts, count_pixels
from bench.packed import PackedMaps

CLASSES, CLUSTERS = 4, 6
SIZES = ((40, 60), (32, 48), (40, 60), (56, 40), (24, 24))


@dataclass
class Pictures:
    """A data set and maps of stride 8 in one."""

    labels: list[np.ndarray]
    stride: int = 8
    classes: tuple[str, ...] = tuple("abcd")

    def __post_init__(self):
        self.sizes = self.extents = tuple(label.shape for label in self.labels)
        self.names = tuple(f"p{number}" for number in range(len(self.labels)))
        self.grids = tuple(tuple(-(-side // self.stride) for side in size) for size in self.sizes)
        self.vectors = sum(h * w for h, w in self.grids)

    def label(self, name):
        return self.labels[self.names.index(name)]

    def cells(self, index):
        return tuple(
            cell_index(side, side, count, self.stride)
            for side, count in zip(self.sizes[index], self.grids[index], strict=True)
        )

    def own(self):
        pixels = [label_pixels(*self.cells(i), self.grids[i], label, CLASSES) for i, label in enumerate(self.labels)]
        return CellLabels(CLASSES, tuple(pixels))


def pictures(sizes=SIZES, stride=8):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, CLASSES, size).astype(np.uint8) for size in sizes]
    for label in labels:
        label[:2] = 255
    return Pictures(labels, stride)


def nearest(own, side):
    """The pixel of an axis of `own` below the centre of each of `side`, in whole numbers."""
    return (2 * np.arange(side) + 1) * own // (2 * side)


def by_pixel(seen, maps, clusters=CLUSTERS):
    """Counts of whole id maps that were brought from each donor to its receiver."""
    drawn = []
    for donor in donors(seen.names):
        tables = []
        for number, label in enumerate(seen.labels):
            ids = np.asarray(maps[donor[number]])
            ids = ids[np.ix_(*map(nearest, ids.shape, label.shape))]
            tables.append(count_pixels(ids, label, clusters, CLASSES))
        drawn.append(Counts.from_dense(tables).dense())
    return drawn


def counted(seen, painting, **about):
    exchange = Exchange(seen, seen, seen.own)
    first = [counts.dense() for counts in exchange.counts(painting, CLUSTERS, **about)]
    again = [counts.dense() for counts in exchange.counts(painting, CLUSTERS, **about)]
    assert all(map(np.array_equal, first, again))
    return first


def full(seen, cells):
    return [ids[np.ix_(*seen.cells(index))] for index, ids in enumerate(cells)]


@pytest.mark.parametrize("sizes", [SIZES, ((40, 60),) * 4], ids=["sizes differ", "one size"])
@pytest.mark.parametrize("stride", [8, 1], ids=["by cell", "by pixel"])
def test_cells(sizes, stride):
    seen = pictures(sizes, stride)
    rng = np.random.default_rng(1)
    cells = [rng.integers(0, CLUSTERS, grid) for grid in seen.grids]
    found = counted(seen, Painting(cells=cells))
    for one, other in zip(found, by_pixel(seen, full(seen, cells)), strict=True):
        np.testing.assert_array_equal(one, other)


def masks_of(seen):
    rng = np.random.default_rng(2)
    return [rng.random(size) < 0.4 for size in seen.sizes]


@pytest.mark.parametrize("stride", [8, 1], ids=["by cell", "by pixel"])
def test_cells_of_a_foreground(stride):
    """What lies around the foreground goes along with the layout."""
    seen, rng = pictures(stride=stride), np.random.default_rng(1)
    cells = [rng.integers(0, CLUSTERS, grid) for grid in seen.grids]
    masks = masks_of(seen)
    painting = Painting(cells=cells, around=3)
    found = counted(seen, painting, key="k", masks=lambda: PackedMaps(mask.view(np.uint8) for mask in masks))
    whole = [np.where(mask, ids, 3) for mask, ids in zip(masks, full(seen, cells), strict=True)]
    for one, other in zip(found, by_pixel(seen, whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_objects():
    seen, ids = pictures(), np.array([1, 5, 0, 2, 1])
    masks = masks_of(seen)
    masks[1][:] = False
    painting = Painting(objects=ids, around=0)
    found = counted(seen, painting, key="k", masks=lambda: PackedMaps(mask.view(np.uint8) for mask in masks))
    whole = [np.where(mask, own, 0) for mask, own in zip(masks, ids, strict=True)]
    for one, other in zip(found, by_pixel(seen, whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pixels():
    seen, rng = pictures(), np.random.default_rng(1)
    maps = [rng.integers(0, CLUSTERS, size).astype(np.uint8) for size in seen.sizes]
    found = counted(seen, Painting(pixels=PackedMaps(maps)))
    for one, other in zip(found, by_pixel(seen, maps), strict=True):
        np.testing.assert_array_equal(one, other)


def test_maps_that_can_be_read_once_and_single_pictures_have_no_exchange():
    seen = pictures()
    assert Exchange(seen, seen, seen.own).counts(Painting(pixels=iter(())), CLUSTERS) == []
    alone = pictures(SIZES[:1])
    cells = [np.zeros(alone.grids[0], int)]
    assert Exchange(alone, alone, alone.own).counts(Painting(cells=cells), CLUSTERS) == []


def test_packed_maps_are_read_as_they_were():
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 256, size).astype(np.uint8) for size in SIZES]
    packed = PackedMaps(maps[:2])
    packed.append(maps[2][:, ::2])
    assert len(packed) == 3
    for one, other in zip(packed, [*maps[:2], maps[2][:, ::2]], strict=True):
        np.testing.assert_array_equal(one, other)
