"""One object per picture: the foreground of a picture, and the embedding pooled over it.

A foreground is a set of pixels with weights: those where a logit that the network gives is above a threshold, or those
of a mask file, which weigh 1 each. It is taken at full resolution, while the embedding stays at that of the map: the
sum over pixels p of w(p) · up(e)(p), with the map e upsampled bilinearly, is the sum over cells c of (upᵀ w)(c) · e(c),
and up is a matrix per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bench.metrics import Counts, count_pixels
from bench.packed import PackedMaps

__all__ = ["Frame", "Objects", "foreground", "gather", "majority", "nearest", "paint_objects", "tally"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bits = NDArray[np.bool_]

_CELLS = 32  # converted at a time: few enough to stay in the processor's cache

# ------------------------------------------------------------------------------------------------------------ numerics


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """How a map of (h, w) cells lies under a picture of (H, W) pixels: its bilinear upsampling, a matrix per axis.

    rows: (H, h). columns: (W, w). Each row of either sums to 1.
    """

    rows: csr_array
    columns: csr_array

    @classmethod
    def of(
        cls,
        pixels: tuple[int, int],
        extent: tuple[float, float],
        cells: tuple[int, int],
        stride: float,
        offset: float = 0.0,
    ) -> Frame:
        """The frame of a map whose cells are `stride` input pixels wide.

        pixels: (H, W) of the picture that is looked at. extent: its size at the network's input, before padding.
        cells: (h, w). stride, offset: as in `bench.records.Tap`.
        """
        axes = zip(pixels, extent, cells, strict=True)
        rows, columns = (_bilinear(size, reach, count, stride, offset) for size, reach, count in axes)
        return cls(rows, columns)

    def upsample(self, map_: NDArray[np.floating[Any]]) -> Doubles:
        """A map (h, w) at the picture's resolution, float64 (H, W): bilinear, align_corners False."""
        return np.asarray((self.rows @ map_.astype(np.float64)) @ self.columns.T, np.float64)

    def pool(self, weights: NDArray[Any], block: NDArray[np.floating[Any]]) -> Doubles:
        """The sum over pixels of weights (H, W) times the upsampled map, float64 (D,); block: the map, (h·w, D)."""
        cells = np.asarray((self.rows.T @ weights.astype(np.float64)) @ self.columns).reshape(-1)
        touched = np.flatnonzero(cells)
        total = np.zeros(block.shape[1])
        for start in range(0, len(touched), _CELLS):
            some = touched[start : start + _CELLS]
            total += cells[some] @ block[some].astype(np.float64)
        return total


def _bilinear(pixels: int, extent: float, cells: int, stride: float, offset: float) -> csr_array:
    """Weights (pixels, cells) of linear interpolation between the centres of cells, constant beyond the outermost."""
    centres = (np.arange(pixels) + 0.5) * (extent / pixels)
    at = np.clip((centres - offset) / stride - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(np.intp), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    share = at - low
    weights = np.stack([1 - share, share], axis=1)
    where = np.stack([low, high], axis=1)
    rows = np.repeat(np.arange(pixels), 2)
    return csr_array((weights.reshape(-1), (rows, where.reshape(-1))), shape=(pixels, cells))


def foreground(
    logits: NDArray[np.floating[Any]], frame: Frame, threshold: float, pooling: Literal["mean", "logit"]
) -> tuple[Bits, NDArray[Any]]:
    """The foreground of a picture from the network's logits (h, w): mask, bool (H, W), and weights (H, W).

    The weights are the mask itself, or with `logit` the logit in it and 0 elsewhere.
    """
    upsampled = frame.upsample(logits)
    mask = upsampled > threshold
    return mask, mask if pooling == "mean" else np.where(mask, upsampled, 0.0)


def tally(mask: Bits, label: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each label outside (row 0) and inside (row 1) a mask of its size: (2, classes + 1), void last."""
    return count_pixels(mask.view(np.uint8), label, 2, classes)


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The objects of a split of P pictures, at most one in each.

    vectors: float32 (P, D), pooled and not normalised; zeros for a picture without foreground. found: bool (P,).
    pixels: int64 (P, 2, C + 1): those of each label outside and inside the foreground, void in the last column. masks:
    the foreground of each picture, 0 and 1 (H, W). Both None where labels were not asked for.
    """

    vectors: Floats
    found: Bits
    pixels: NDArray[np.int64] | None
    masks: PackedMaps | None = None

    @property
    def tables(self) -> NDArray[np.int64]:
        """`pixels`, which must have been asked for."""
        assert self.pixels is not None
        return self.pixels


def gather(
    vectors: Sequence[Doubles | None],
    channels: int,
    pixels: Sequence[NDArray[np.int64]] | None,
    masks: PackedMaps | None = None,
) -> Objects:
    """`Objects` from what was found picture by picture; None stands for a picture without foreground."""
    found = np.array([vector is not None for vector in vectors], np.bool_)
    held = np.zeros((len(vectors), channels), np.float32)
    for index, vector in enumerate(vectors):
        if vector is not None:
            held[index] = vector
    return Objects(held, found, None if pixels is None else np.stack(pixels), masks)


def paint_objects(tables: NDArray[np.int64], ids: NDArray[np.integer[Any]], around: int, clusters: int) -> Counts:
    """Per-picture counts, the object of each picture painted with its id and what is around it with `around`.

    tables: pixels of each label outside and inside the foreground, (P, 2, C + 1), void last. ids: (P,), below
    `clusters`.
    """
    tables = tables.copy()
    alike = ids == around
    tables[alike, 0] += tables[alike, 1]
    tables[alike, 1] = 0
    picture, inside, label = (index.astype(np.int32) for index in np.nonzero(tables))
    cluster = np.where(inside, ids[picture], around).astype(np.int32)
    return Counts(picture, cluster, label, tables[picture, inside, label], (len(ids), clusters, tables.shape[2]))


def majority(inside: NDArray[np.integer[Any]], background: int | None) -> NDArray[np.int64]:
    """The most frequent class of each object, int64 (P,); -1 where there is none but background and void.

    inside: pixels of each label, (P, C + 1), void last. Of equal classes the one of the larger number is taken, as the
    released code of arXiv 2102.06191 does.
    """
    counts = inside[:, :-1].copy()
    if background is not None:
        counts[:, background] = 0
    best = counts.shape[1] - 1 - counts[:, ::-1].argmax(1)
    return np.where(counts.max(1) > 0, best, -1)


def nearest(queries: Floats, keys: Floats) -> NDArray[np.int64]:
    """The key of largest cosine for each query, int64 (n,); float32 (n, D) and (m, D), m at least 1.

    Raises MismatchError naming both extras where faiss is not installed.
    """
    from bench import cluster

    cluster.require_faiss("nearest neighbours need")
    import faiss

    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(cluster.normalize_l2(keys))
    return np.asarray(index.search(cluster.normalize_l2(queries), 1)[1][:, 0], np.int64)
