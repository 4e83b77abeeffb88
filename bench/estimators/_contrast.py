"""Saliency from superpixels: background by its connection to the border, contrast against it, and a smooth solution.

Formulas: Zhu et al., "Saliency Optimization from Robust Background Detection", CVPR 2014; numbers of equations below
are the paper's.

Several threads do this at once: sparse algebra and sums over rows, since dense BLAS would start threads of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from skimage.segmentation import slic

from bench.images import resize_picture
from bench.saliency import stretch_to_bytes

from .contrast import ContrastOptions

__all__ = ["Contrast", "Regions", "boundary_connectivity", "regions", "scores", "shortest_paths"]

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]
Map = NDArray[np.uint8]

_NOTICEABLE = 1.0
"""Distance in CIE Lab below which people see no difference: a picture with no more than that is plain."""


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """The superpixels of a picture, N of them.

    ids: superpixel of each pixel, (h, w). colours: mean CIE Lab, (N, 3). centres: (N, 2), in shares of the longest
    side. adjacent: which touch, also at a corner, symmetric (N, N). border: which lie at the picture's border, (N,).
    """

    ids: NDArray[np.intp]
    colours: Floats
    centres: Floats
    adjacent: Bits
    border: Bits


class Contrast:
    """The estimator; satisfies `bench.contracts.Estimator`."""

    def __init__(self, options: ContrastOptions) -> None:
        self._options = options

    def prepare(self, picture: NDArray[np.uint8]) -> Map:
        """The map itself, at the size of the superpixels' picture: there is nothing that a batch could share."""
        options = self._options
        height, width = picture.shape[:2]
        shrunk = min(1.0, options.side / max(height, width))
        size = (max(1, round(height * shrunk)), max(1, round(width * shrunk)))
        found = regions(resize_picture(picture, size, "bilinear"), options.segments, options.compactness)
        values = scores(found, options)[found.ids]
        if options.level == "otsu" and np.ptp(values) > 0:
            values = _bent(values, float(threshold_otsu(values)))
        return stretch_to_bytes(values)

    def saliency(self, prepared: Sequence[Map]) -> Sequence[Map]:
        return prepared


def regions(picture: NDArray[np.uint8], segments: int, compactness: float) -> Regions:
    """Cut a picture (h, w, 3) into about so many superpixels (SLIC)."""
    height, width = picture.shape[:2]
    ids = slic(picture, n_segments=segments, compactness=compactness, start_label=0)
    flat = ids.ravel()
    pixels = np.bincount(flat)
    places = np.mgrid[:height, :width].reshape(2, -1) / max(height, width)
    return Regions(
        ids=ids,
        colours=_means(flat, pixels, rgb2lab(picture).reshape(-1, 3).T),
        centres=_means(flat, pixels, places),
        adjacent=_adjacent(ids, len(pixels)),
        border=np.isin(np.arange(len(pixels)), np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])),
    )


def _means(flat: NDArray[np.intp], pixels: NDArray[np.intp], values: Floats) -> Floats:
    """The mean over each superpixel's pixels of every row of values (D, h·w): (N, D)."""
    return np.stack([np.bincount(flat, row) / pixels for row in values], axis=1)


def _adjacent(ids: NDArray[np.intp], count: int) -> Bits:
    adjacent = np.zeros((count, count), bool)
    for one, other in (
        (ids[:-1], ids[1:]), (ids[:, :-1], ids[:, 1:]), (ids[:-1, :-1], ids[1:, 1:]), (ids[1:, :-1], ids[:-1, 1:]),
    ):  # fmt: skip
        differ = one != other
        adjacent[one[differ], other[differ]] = True
    adjacent |= adjacent.T
    return adjacent


def scores(found: Regions, options: ContrastOptions) -> Floats:
    """Saliency of every superpixel, (N,): what minimises the cost of eq. 9; 0 where the picture is plain."""
    apart = _distances(found.colours)
    if apart.max() < _NOTICEABLE:
        return np.zeros(len(apart))
    background = 1 - np.exp(-(boundary_connectivity(found, apart, options.colour) ** 2) / (2 * options.boundary**2))
    near = np.exp(-(_distances(found.centres) ** 2) / (2 * options.space**2))
    contrast = (apart * near * background).sum(1)  # eq. 7
    contrast = (contrast - contrast.min()) / np.ptp(contrast)
    # alike superpixels within two steps, and all at the border, are drawn together (eq. 10)
    step = csc_matrix(found.adjacent, dtype=np.float64)
    together = ((step + step @ step).toarray() > 0) | np.logical_and.outer(found.border, found.border)
    pull = np.where(together, np.exp(-(apart**2) / (2 * options.colour**2)) + options.smoothness, 0.0)
    np.fill_diagonal(pull, 0)
    solved: Floats = spsolve(csc_matrix(np.diag(background + contrast + pull.sum(1)) - pull), contrast)
    return solved


def boundary_connectivity(found: Regions, apart: Floats, colour: float) -> Floats:
    """How much of the area that a superpixel spans lies at the border, (N,): length over root of the area (eq. 6).

    apart: distances of colours (N, N). Superpixels at the border count as neighbours of each other. A step costs the
    difference of the two colours, less what neighbours differ by anyway: the mean over superpixels of the least
    difference to a neighbour. That allowance is ours; the authors' code has one of its own.
    """
    least = np.where(found.adjacent, apart, np.inf).min(1)
    allowance = least[np.isfinite(least)].mean() if np.isfinite(least).any() else 0.0
    linked = found.adjacent | np.logical_and.outer(found.border, found.border)
    cost = np.where(linked, np.maximum(apart - allowance, 0), np.inf)
    np.fill_diagonal(cost, 0)
    spanned = np.exp(-(shortest_paths(cost) ** 2) / (2 * colour**2))
    connectivity: Floats = spanned[:, found.border].sum(1) / np.sqrt(spanned.sum(1))
    return connectivity


def shortest_paths(cost: Floats) -> Floats:
    """Least sums of steps' costs (N, N) from each node to each other one; no step where the cost is infinite.

    By Floyd's and Warshall's algorithm on whole rows: for some hundred nodes faster than a heap of them, and other
    threads go on meanwhile.
    """
    shortest: Floats = cost.copy()
    over = np.empty_like(cost)
    for middle in range(len(cost)):
        np.add(shortest[:, middle, None], shortest[middle], out=over)
        np.minimum(shortest, over, out=shortest)
    return shortest


def _distances(points: Floats) -> Floats:
    """Euclidean distances (N, N) of points (N, D)."""
    distances: Floats = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    return distances


def _bent(values: Floats, level: float) -> Floats:
    """Values scaled so that the least is 0, `level` one half and the largest 1, linear between them."""
    return np.interp(values, (values.min(), level, values.max()), (0.0, 0.5, 1.0))
