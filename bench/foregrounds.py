"""The foreground of every picture of a split, as the network or mask files give it, streamed beside the maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import objects
from bench.contracts import Dataset
from bench.errors import DatasetError, FeatureError, MismatchError, SettingError
from bench.features import LARGEST_FEATURE, Layout, SplitMaps
from bench.images import cell_index
from bench.objects import Frame, Objects
from bench.packed import PackedMaps
from bench.registry import near
from bench.settings import ObjectSettings, mask_set

__all__ = ["cells", "check_masks", "collect", "masks"]

log = logging.getLogger(__name__)

Bits = NDArray[np.bool_]


def check_masks(dataset: Dataset, names: tuple[str, ...], foreground: str) -> None:
    """Look whether a `foreground` setting names a mask set that has a mask of every picture.

    Says how many the set knows to have no foreground: they are all background.
    Raises SettingError for a set that is not there (with near names), DatasetError for a picture without a mask.
    """
    wanted = mask_set(foreground)
    if not wanted:
        return
    there = dataset.mask_sets()
    if not dataset.has_mask_set(wanted):
        raise SettingError(
            f"{dataset.name} has no mask set {wanted!r}.{near(wanted, there)} Sets of {dataset.root}: "
            f"{', '.join(there) or 'none'}; masks lie in saliency_{wanted}/, one PNG per picture, or in a folder that "
            f"its path names (masks:./{wanted})"
        )
    missing = [name for name in names if not dataset.has_mask(name, wanted)]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(names)} pictures have no mask in the set {wanted} of {dataset.root}, the first is "
            f"{missing[0]!r}: add the masks, or choose another set (an empty mask says that there is no foreground)"
        )
    empty = dataset.without_foreground(names, wanted)
    if empty:
        log.info(
            "%d of %d pictures have no foreground, as the record of the set %s says: they are all background, the "
            "first is %r", len(empty), len(names), wanted, empty[0],
        )  # fmt: skip


def masks(dataset: Dataset, maps: SplitMaps, how: ObjectSettings) -> Iterator[Bits]:
    """The foreground of every picture at its own size, bool (H, W), in list order."""
    for _, mask in _stream(dataset, maps, how, pooled=False):
        yield mask


def cells(dataset: Dataset, maps: SplitMaps, how: ObjectSettings) -> list[Bits]:
    """The cells (h, w) of every picture's map that hold a pixel of its foreground, by nearest neighbour."""
    found = []
    for index, mask in enumerate(masks(dataset, maps, how)):
        rows, columns = maps.cells(index)
        held = np.zeros(maps.grids[index], np.bool_)
        y, x = np.nonzero(mask)
        held[rows[y], columns[x]] = True
        found.append(held)
    return found


def collect(
    dataset: Dataset, maps: SplitMaps, how: ObjectSettings, *, label: Callable[[str], NDArray[np.uint8]] | None
) -> Objects:
    """The object of every picture; label: reads a label map, None where labels are not needed."""
    vectors: list[NDArray[np.float64] | None] = []
    pixels: list[NDArray[np.int64]] = []
    seen = PackedMaps()
    for name, (vector, mask) in zip(maps.names, _stream(dataset, maps, how, pooled=True), strict=True):
        vectors.append(_in_range(vector, name))
        if label is not None:
            pixels.append(objects.tally(mask, label(name), len(dataset.classes)))
            seen.append(mask.view(np.uint8))
    counted = label is not None
    return objects.gather(vectors, maps.channels, pixels if counted else None, seen if counted else None)


def _in_range(vector: NDArray[np.float64] | None, name: str) -> NDArray[np.float64] | None:
    """Refuse an embedding that float32 cannot hold: maps and logits that fit may still give too large sums."""
    if vector is not None and np.abs(vector).max(initial=0) > LARGEST_FEATURE:
        raise FeatureError(
            f"the object of picture {name!r} has an embedding of {np.abs(vector).max():.1e}, expected at most "
            f"{LARGEST_FEATURE:.1e}: check the scale of the map and of the foreground's logits, or take pooling=mean"
        )
    return vector


def _stream(
    dataset: Dataset, maps: SplitMaps, how: ObjectSettings, *, pooled: bool
) -> Iterator[tuple[NDArray[np.float64] | None, Bits]]:
    """(pooled embedding or None, foreground at the picture's own size) of every picture."""
    files = mask_set(how.foreground)
    if files:
        if not pooled:
            yield from ((None, dataset.mask(name, files)) for name in maps.names)
            return
        for index, (name, block) in enumerate(zip(maps.names, maps, strict=True)):
            mask = dataset.mask(name, files)
            yield _pooled(maps, index, block, mask, mask), mask
        return
    beside = _foreground_layout(maps)
    for index, blocks in enumerate(maps.together()):
        (height, width), extent = maps.sizes[index], maps.extents[index]
        logits = blocks[maps.layouts.index(beside)].reshape(beside.grids[index])
        mask, weights = objects.foreground(logits, _frame(maps, beside, index, extent), how.threshold, how.pooling)
        rows, columns = cell_index(height, extent[0], extent[0], 1), cell_index(width, extent[1], extent[1], 1)
        own = mask if extent == (height, width) else mask[rows[:, None], columns]
        yield (_pooled(maps, index, blocks[0], mask, weights) if pooled else None), own


def _foreground_layout(maps: SplitMaps) -> Layout:
    for layout in maps.layouts:
        if layout.tap.kind == "foreground_logit":
            return layout
    raise MismatchError("the method gives no foreground of its own: give masks with --set foreground=masks:NAME")


def _pooled(
    maps: SplitMaps, index: int, block: NDArray[np.float32], mask: Bits, weights: NDArray[Any]
) -> NDArray[np.float64] | None:
    """The embedding summed with the weights, over their sum where they are the mask; None without foreground."""
    if not mask.any():
        return None
    summed = _frame(maps, maps.layouts[0], index, mask.shape).pool(weights, block)
    return summed / np.count_nonzero(mask) if weights.dtype == np.bool_ else summed


def _frame(maps: SplitMaps, layout: Layout, index: int, pixels: tuple[int, ...]) -> Frame:
    """The frame of a tap's map of a picture under (H, W) pixels that cover the whole picture."""
    tap = layout.tap
    extent = maps.sizes[index] if tap.frame == "label" else maps.extents[index]
    return Frame.of((pixels[0], pixels[1]), extent, layout.grids[index], tap.stride, tap.offset)
