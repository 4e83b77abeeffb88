"""Reduction and clustering of feature vectors: exact streamed PCA, k-means++ starts, Lloyd's algorithm.

Pure functions on float32 arrays (n, d). Sums run in float64 over blocks that depend on the order of the vectors alone,
so that neither batches nor workers change a result. faiss, scikit-learn and torch are imported by what uses them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, eigh
from scipy.sparse import csc_array

from bench.errors import InternalError, MismatchError, SettingError

__all__ = [
    "ENGINES",
    "MINIBATCH_STARTS",
    "RANK_TOLERANCE",
    "Effort",
    "KMeansResult",
    "Moments",
    "Reduction",
    "assign",
    "default_engine",
    "exponent",
    "faiss_available",
    "fit_reduction",
    "kmeans",
    "kmeans_plus_plus",
    "lloyd",
    "minibatch_kmeans",
    "normalize_l2",
    "require_faiss",
]

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
Normalize = Literal["none", "l2", "standardize"]
Weights = NDArray[np.float64]
Tick = Callable[[int], None]

RANK_TOLERANCE = 1e-7
"""Directions with less than this share of the largest variance are noise of float32, and not kept."""

_GRAM_ROWS = 4096  # vectors per matrix product
_EXACT_WIDTH = 512  # up to this width the products run in float64 too: above, it would double the time of the PCA
_BLOCK = 1 << 21  # numbers per block of vectors: large enough that starting the threads of an engine costs nothing
_TORCH_DISTANCES = 1 << 21  # distances per matrix product on a CPU: few enough to stay in the processor's cache
_DISTANCES = 1 << 21  # distances per matrix product of several starts
_SUM_ROWS = 8192  # vectors summed in float32 before float64 takes over
_TINY = float(np.finfo(np.float32).tiny)
_ORDINARY = 40  # magnitudes up to 2^40, and down to 2^-40, have squares and differences that float32 holds


# ---------------------------------------------------------------------------------------------------------------- range


def exponent(*arrays: Floats) -> int:
    """The e for which 2^-e brings the largest magnitude of all arrays into [1/2, 1); 0 where it is ordinary already.

    Ordinary is from 2^-40 to 2^40: what is not scaled keeps its bits. Scaling by a power of two is exact.
    """
    return _beyond(max((max(float(array.max()), -float(array.min())) for array in arrays if array.size), default=0.0))


def _beyond(magnitude: float) -> int:
    found = math.frexp(magnitude)[1]
    return found if abs(found) > _ORDINARY else 0


def _scaled(array: Floats, by: int) -> Floats:
    """The array times 2^by; itself where that is 1."""
    return np.ldexp(array, by) if by else array


# ------------------------------------------------------------------------------------------------------------ reduction


class Moments:
    """Exact first and second moments of streamed vectors: add all, then read; the cuts of the stream do not matter.

    Products are taken of 4,096 vectors at a time after subtracting the mean of the first 4,096, in float64 up to 512
    dimensions and in float32 above (error below 1e-8 of the largest variance), and summed in float64.
    Memory: 12·D² bytes and 4,096 vectors.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._rows: Floats = np.empty((_GRAM_ROWS, width), np.float32)
        self._filled = 0
        self._shift: Floats | None = None
        self._sum = np.zeros(width)
        self._gram = np.zeros((width, width))  # of the shifted vectors; the upper triangle alone

    def add(self, block: Floats) -> None:
        """Take in vectors, float32 (n, D)."""
        self.count += len(block)
        while len(block):
            taken = min(len(block), _GRAM_ROWS - self._filled)
            self._rows[self._filled : self._filled + taken] = block[:taken]
            self._filled += taken
            block = block[taken:]
            if self._filled == _GRAM_ROWS:
                self._flush()

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean, float64 (D,)."""
        self._flush()
        shift = 0.0 if self._shift is None else self._shift.astype(np.float64)
        return np.asarray(shift + self._sum / max(self.count, 1), np.float64)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased covariance, float64 (D, D), symmetric; zero for fewer than two vectors."""
        self._flush()
        upper = np.triu(self._gram - np.outer(self._sum, self._sum) / max(self.count, 1)) / max(self.count - 1, 1)
        return np.asarray(upper + np.triu(upper, 1).T, np.float64)

    def _flush(self) -> None:
        if not self._filled:
            return
        rows = self._rows[: self._filled]
        if self._shift is None:
            self._shift = rows.mean(0, dtype=np.float64).astype(np.float32)
        exact = rows.shape[1] <= _EXACT_WIDTH
        centred = np.subtract(rows, self._shift, dtype=np.float64 if exact else np.float32)
        self._sum += centred.sum(0, dtype=np.float64)
        by = 0 if exact else exponent(centred)
        product = (blas.dsyrk if exact else blas.ssyrk)(1.0, _scaled(centred, -by).T)
        self._gram += np.ldexp(product.astype(np.float64), 2 * by) if by else product
        self._filled = 0


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """A linear map of vectors: (x - mean) / scale, projected on `components`.

    mean: float32 (D,). scale: float32 (D,) or None. components: float32 (D, d), whitening included; None = not
    projected. rank: dimensions of the result that carry variance. explained: share of the variance that was kept.
    l2: vectors are brought to unit length first (one that has it already stays as it is).
    """

    mean: Floats
    scale: Floats | None
    components: Floats | None
    rank: int
    explained: float
    l2: bool = False

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of it beside a row, by name; `explained` as an array of one."""
        named = {"mean": self.mean, "scale": self.scale, "components": self.components}
        kept: dict[str, NDArray[Any]] = {name: array for name, array in named.items() if array is not None}
        return kept | {"explained": np.array([self.explained])}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, l2: bool) -> Reduction:
        """The reduction whose `arrays` were kept; l2: as `normalize` was."""
        components = arrays.get("components")
        rank = len(arrays["mean"]) if components is None else components.shape[1]
        return cls(arrays["mean"], arrays.get("scale"), components, rank, float(arrays["explained"][0]), l2)

    def apply(self, block: Floats) -> Floats:
        """float32 (n, D) -> float32 (n, d)."""
        rows = (normalize_l2(block) if self.l2 else block) - self.mean
        if self.scale is not None:
            rows /= self.scale
        return rows if self.components is None else np.asarray(rows @ self.components, np.float32)


def normalize_l2(block: Floats) -> Floats:
    """Vectors (n, D) at unit length; zero vectors stay zero."""
    length = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
    length[length == 0] = 1
    held = length if length.min(initial=1) < _TINY else length.astype(np.float32)
    return np.asarray(block / held[:, None], np.float32)


def fit_reduction(moments: Moments, dimensions: int, whiten: bool, normalize: Normalize) -> Reduction:
    """The reduction of the vectors whose moments are given. With `l2`, take the moments of `normalize_l2(vectors)`.

    dimensions: principal components to keep; 0 = all, without a rotation unless whitened. Where the vectors have a
    smaller rank (see `RANK_TOLERANCE`), fewer are kept: compare `rank`. whiten: give every component variance 1.
    `standardize` divides each input dimension by its (population) standard deviation, a constant one by 1.
    Equal vectors have rank 0 and come out as one dimension of zeros.
    """
    if dimensions < 0:
        raise SettingError(f"cannot keep {dimensions} dimensions: give a number of components, or 0 for all")
    covariance = moments.covariance
    scale = None
    if normalize == "standardize":
        deviation = np.sqrt(np.diag(covariance) * (1 - 1 / max(moments.count, 1)))
        scale = np.where(deviation > 0, deviation, 1)
        covariance = covariance / np.outer(scale, scale)
    elif by := _beyond(math.sqrt(float(np.diag(covariance).max(initial=0)))):
        # the components, or what they give, could leave the range of float32
        scale = np.full(len(covariance), 2.0**by)
        covariance = np.ldexp(covariance, -2 * by)
    mean = moments.mean.astype(np.float32)
    scale32 = None if scale is None else scale.astype(np.float32)
    l2 = normalize == "l2"
    if dimensions == 0 and not whiten:
        return Reduction(mean, scale32, None, len(mean), 1.0, l2)
    variances, directions = _principal(covariance, dimensions or len(mean))
    rank = len(variances)
    if rank == 0:
        return Reduction(mean, scale32, np.zeros((len(mean), 1), np.float32), 0, 1.0, l2)
    if whiten:
        directions = directions / np.sqrt(variances)
    explained = min(float(variances.sum() / np.trace(covariance)), 1.0)
    return Reduction(mean, scale32, np.ascontiguousarray(directions, np.float32), rank, explained, l2)


def _principal(covariance: NDArray[np.float64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variances (d,), largest first, and unit directions (D, d), the largest entry of each positive."""
    width = len(covariance)
    first = max(width - most, 0)
    variances, directions = eigh(covariance, subset_by_index=(first, width - 1))
    variances, directions = variances[::-1], directions[:, ::-1]
    kept = (variances > RANK_TOLERANCE * variances[0]) & (variances > 0)
    variances, directions = variances[kept], directions[:, kept]
    largest = np.abs(directions).argmax(0)
    return variances, directions * np.sign(directions[largest, np.arange(len(variances))])


# --------------------------------------------------------------------------------------------------------------- starts


Seed = int | np.random.SeedSequence


def kmeans_plus_plus(
    x: Floats,
    k: int,
    seeds: Sequence[Seed],
    *,
    candidates: int = 1,
    weights: Weights | None = None,
    tick: Tick | None = None,
) -> Floats:
    """k-means++ starts (Arthur & Vassilvitskii 2007), one per seed, float32 (starts, k, d).

    candidates: draws per centre, of which the one that leaves the least sum of squared distances is taken ("greedy"
    where there are several). It must not depend on k: then the first k' centres of k are those of k' from the same
    seeds. Where there are fewer distinct vectors than k, vectors repeat. weights: float64 (n,), how often each vector
    stands for itself (1 where None). tick: called with 1 for every centre of every start.
    Memory: 8 MB, or `candidates` arrays of n numbers where these are more, and one such array per start, beside x.
    """
    if k < 1 or len(x) == 0:
        raise SettingError(f"cannot start {k} clusters on {len(x)} vectors: both must be at least 1")
    if by := exponent(x):
        scaled = _scaled(x, -by)
        return _scaled(kmeans_plus_plus(scaled, k, seeds, candidates=candidates, weights=weights, tick=tick), by)
    mean, _ = _spread(x, weights)
    # Rounding gives copies of a centre a small distance, and their number a large sum: what rounding explains is 0.
    trust = np.float32(1 - 4 * np.sqrt(x.shape[1]) * np.finfo(np.float32).eps)
    norms = np.concatenate([_squares(block) for _, block in _blocks(x, mean)]) * trust

    def distances(chosen: NDArray[np.int64], out: Floats) -> None:
        # |x - m|² + |c - m|² - 2 (x - m)·(c - m), centred for accuracy without a centred copy of x
        centres = x[chosen] - mean
        np.matmul(-2 * centres, x.T, out=out)
        out += (trust * _squares(centres) + 2 * (centres @ mean))[:, None]
        out += norms
        out[np.arange(len(chosen)), chosen] = 0

    together = max(_DISTANCES // (candidates * len(x)), 1)
    groups = [seeds[first : first + together] for first in range(0, len(seeds), together)]
    return np.concatenate([x[_start(distances, len(x), k, group, candidates, weights, tick)] for group in groups])


def _start(
    distances: Callable[[NDArray[np.int64], Floats], None],
    number: int,
    k: int,
    seeds: Sequence[Seed],
    candidates: int,
    weights: Weights | None,
    tick: Tick | None,
) -> NDArray[np.int64]:
    """Which of so many vectors the centres of each start are, (starts, k); distances: from some to all, written."""
    generators = [np.random.default_rng(seed) for seed in seeds]
    chosen = np.empty((len(seeds), k), np.int64)
    if weights is None:
        chosen[:, 0] = [rng.integers(number) for rng in generators]
    else:
        chosen[:, 0] = [_draw(weights, rng.random(1))[0] for rng in generators]
    closest = np.empty((len(seeds), number), np.float32)
    distances(chosen[:, 0], closest)
    np.maximum(closest, 0, out=closest)
    found = np.empty((len(seeds), candidates, number), np.float32)
    each = np.arange(len(seeds))
    for i in range(k):
        if i:
            masses = closest if weights is None else closest * weights
            pairs = zip(masses, generators, strict=True)
            drawn = np.stack([_draw(row, rng.random(candidates)) for row, rng in pairs])
            distances(drawn.reshape(-1), found.reshape(-1, number))
            np.minimum(found, closest[:, None], out=found)
            np.maximum(found, 0, out=found)
            best = _potentials(found, weights).argmin(1) if candidates > 1 else np.zeros_like(each)
            chosen[:, i] = drawn[each, best]
            closest[:] = found[each, best]
        if tick is not None:
            tick(len(seeds))
    return chosen


def _draw(masses: NDArray[Any], drawn: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where the running sum of `masses` passes the shares `drawn` of the whole; any places where all are 0."""
    cumulated = np.cumsum(masses, dtype=np.float64)
    if cumulated[-1] == 0:
        return (drawn * len(masses)).astype(np.int64)
    places = np.searchsorted(cumulated, drawn * cumulated[-1], side="right")
    return np.asarray(np.minimum(places, len(masses) - 1), np.int64)


def _potentials(distances: Floats, weights: Weights | None) -> NDArray[np.floating[Any]]:
    """What the distances of each candidate (..., n) sum to."""
    return distances.sum(-1) if weights is None else np.asarray(distances @ weights)


# -------------------------------------------------------------------------------------------------------------- engines

Nearest = Callable[[Floats], NDArray[np.integer[Any]]]


def _nearest_by_faiss(centroids: Floats, device: str) -> Nearest:
    if not faiss_available():
        raise SettingError(
            "engine 'faiss' is not installed: pip install 'densebench[cpu]' or 'densebench[gpu]' (not both), "
            "or choose engine torch or sklearn"
        )
    import faiss

    index: Any = faiss.IndexFlatL2(centroids.shape[1])
    if device.startswith("cuda") and _faiss_has_gpu():
        index = faiss.index_cpu_to_gpu(_faiss_resources(), int(device.partition(":")[2] or 0), index)
    index.add(centroids)
    return lambda block: np.asarray(index.search(block, 1)[1][:, 0])


def _nearest_by_sklearn(centroids: Floats, device: str) -> Nearest:
    from sklearn import config_context
    from sklearn.metrics import pairwise_distances_argmin

    def nearest(block: Floats) -> NDArray[np.integer[Any]]:
        with config_context(assume_finite=True):
            return np.asarray(pairwise_distances_argmin(block, centroids))

    return nearest


def _nearest_by_torch(centroids: Floats, device: str) -> Nearest:
    import torch

    centres = torch.from_numpy(centroids).to(device)
    bias = -0.5 * centres.square().sum(1)
    most = max(_TORCH_DISTANCES // len(centroids), 1024)

    def nearest(block: Floats) -> NDArray[np.integer[Any]]:
        # torch warns of memory it may not write to, such as a mapped cache
        rows = torch.from_numpy(np.require(block, requirements="W")).to(device)
        parts = torch.split(rows, most) if rows.device.type == "cpu" else (rows,)
        return np.asarray(torch.cat([torch.addmm(bias, part, centres.T).argmax(1) for part in parts]).cpu())

    return nearest


ENGINES: Mapping[str, Callable[[Floats, str], Nearest]] = {
    "faiss": _nearest_by_faiss,
    "sklearn": _nearest_by_sklearn,
    "torch": _nearest_by_torch,
}
"""Ways to find the nearest of the centroids given, by name."""


def faiss_available() -> bool:
    """Whether one of the packages that bring faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def require_faiss(what: str, instead: str = "") -> None:
    """MismatchError naming both extras where faiss is not installed.

    what: what cannot be done then, "… needs". instead: what to type to do without it, "" where there is nothing.
    """
    if not faiss_available():
        raise MismatchError(
            f"{what} faiss: pip install 'densebench[cpu]', or 'densebench[gpu]' for NVIDIA GPUs (not both)"
            + (f"; or do without it, {instead}" if instead else "")
        )


def default_engine(device: str = "cpu") -> Literal["faiss", "torch"]:
    """The fastest engine at hand: faiss where it is installed and can use the device, else torch."""
    if faiss_available() and (not device.startswith("cuda") or _faiss_has_gpu()):
        return "faiss"
    return "torch"


def _faiss_has_gpu() -> bool:
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@functools.cache
def _faiss_resources() -> Any:
    import faiss

    return faiss.StandardGpuResources()


def _engine(name: str, device: str) -> Callable[[Floats], Nearest]:
    if name not in ENGINES:
        raise SettingError(f"unknown engine '{name}': choose one of {', '.join(ENGINES)}")
    return lambda centroids: ENGINES[name](centroids, device)


# -------------------------------------------------------------------------------------------------------------- k-means


@dataclass(frozen=True, slots=True, eq=False)
class KMeansResult:
    """A clustering of n vectors.

    labels: int32 (n,), the nearest centroid. centroids: float32 (K, d). inertia: sum of squared distances.
    iterations: passes made. converged: it stopped by itself. empty: clusters without a vector. engine: what made it.
    """

    labels: Labels
    centroids: Floats
    inertia: float
    iterations: int
    converged: bool
    empty: int
    engine: str

    def times(self, by: int) -> KMeansResult:
        """The clustering of the same vectors times 2^by."""
        return replace(self, centroids=_scaled(self.centroids, by), inertia=self.inertia * 4.0**by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard K-means tries, for as many vectors and clusters as there may be.

    Of `starts` starts of `kmeans_plus_plus`, each centre the best of so many `candidates`, `finished` are finished by
    Lloyd's algorithm on all vectors, and the one of least inertia counts. Where that is fewer than all, each start
    makes `passes` of the algorithm first, and those of least inertia are finished from where they stand.
    sample: starts are drawn, and make those passes, among so many vectors; 0 = all (see `_sample`).
    """

    starts: int = 1
    candidates: int = 1
    sample: int = 0
    passes: int = 0
    finished: int = 1

    def steps(self, k: int, iterations: int) -> int:
        """What all calls of `tick` sum to: centres drawn and passes made."""
        short = self.starts * self.passes if self.finished < self.starts else 0
        return self.starts * k + short + min(self.finished, self.starts) * iterations


def kmeans(
    x: Floats,
    k: int,
    seed: int,
    *,
    engine: str,
    effort: Effort | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
    device: str = "cpu",
    weights: Weights | None = None,
    tick: Tick | None = None,
) -> KMeansResult:
    """The best clustering that an effort finds, by default `lloyd` from one start: a function of (x, k, seed) alone.

    What it says of iterations, convergence and empty clusters is of the run that was finished best, on all vectors.
    tick: its calls sum to `effort.steps`.
    """
    effort = effort or Effort()
    rows, repeats = _sample(x, k, seed, effort.sample, weights)

    def run(rows: Floats, start: Floats, most: int, repeats: Weights | None) -> KMeansResult:
        return lloyd(
            rows, start, engine=engine, iterations=most, tolerance=tolerance, device=device, weights=repeats, tick=tick
        )

    seeds = _seeds(seed, effort.starts)
    starts = list(kmeans_plus_plus(rows, k, seeds, candidates=effort.candidates, weights=repeats, tick=tick))
    if effort.finished < effort.starts:
        tried = [run(rows, start, effort.passes, repeats) for start in starts]
        tried.sort(key=lambda found: found.inertia)
        starts = [found.centroids for found in tried[: effort.finished]]
    return min((run(x, start, iterations, weights) for start in starts), key=lambda found: found.inertia)


def _seeds(seed: int, starts: int) -> list[Seed]:
    """What each start is drawn from; the first is that of the seed alone."""
    return [seed, *(np.random.SeedSequence(seed, spawn_key=(number,)) for number in range(1, starts))]


_PER_CLUSTER = 16  # vectors of a sample per cluster, at least: among fewer, clusters are mostly chance


def _sample(x: Floats, k: int, seed: int, most: int, weights: Weights | None) -> tuple[Floats, Weights | None]:
    """Vectors for the starts, and their weights: `most` of x, one from each of so many equal parts in their order.

    With weights, the parts are of equal weight, and a vector may be drawn several times. All of x where there are no
    more than `most`, where `most` is 0, or less than 16 per cluster.
    """
    if len(x) <= most or most < _PER_CLUSTER * k:
        return x, weights
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    places = (np.arange(most) + rng.random(most)) / most
    if weights is None:
        return x[np.minimum((places * len(x)).astype(np.int64), len(x) - 1)], None
    return x[_draw(weights, places)], None


def lloyd(
    x: Floats,
    start: Floats,
    *,
    engine: str,
    iterations: int = 100,
    tolerance: float = 1e-4,
    device: str = "cpu",
    weights: Weights | None = None,
    tick: Tick | None = None,
) -> KMeansResult:
    """Lloyd's algorithm on all vectors, from given centroids.

    x: float32 (n, d), C-contiguous. start: (K, d). It stops when no label changes, when the summed squared move of the
    centroids is at most `tolerance` times the mean variance of the dimensions, or after `iterations`.
    A cluster that loses its last vector keeps its centroid, and may win vectors again.
    weights: float64 (n,): the result is that of x with each vector repeated so often.
    tick: called once per pass, and at the end with what is left of `iterations`.
    """
    _require_float32(x)
    if by := exponent(x):
        found = lloyd(
            _scaled(x, -by),
            _scaled(start, -by),
            engine=engine,
            iterations=iterations,
            tolerance=tolerance,
            device=device,
            weights=weights,
            tick=tick,
        )
        return found.times(by)
    prepare = _engine(engine, device)
    mean, variance = _spread(x, weights)
    offset = mean if mean @ mean > variance * x.shape[1] else None  # far from the origin, distances lose digits
    centroids = start.astype(np.float64) - (0 if offset is None else offset)
    labels: Labels = np.full(len(x), -1, np.int32)
    passes, converged, settled = 0, False, False
    while passes < iterations and not converged:
        changed, sums, sizes = _pass(x, offset, prepare(centroids.astype(np.float32)), labels, len(centroids), weights)
        passes += 1
        if changed == 0:
            converged = settled = True
        else:
            moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
            converged = bool(np.square(moved - centroids).sum() <= tolerance * variance)
            centroids = moved
        if tick is not None:
            tick(1)
    if tick is not None and passes < iterations:
        tick(iterations - passes)
    final = centroids.astype(np.float32)
    if not settled:
        _label(x, offset, prepare(final), labels)
    inertia = 0.0
    for at, block in _blocks(x, offset):
        squares = _squares(block - final[labels[at]])
        inertia += float(squares.sum(dtype=np.float64) if weights is None else squares @ weights[at])
    empty = len(final) - len(np.unique(labels))
    centroids = centroids + (0 if offset is None else offset)
    return KMeansResult(labels, centroids.astype(np.float32), inertia, passes, converged, empty, engine)


def assign(x: Floats, centroids: Floats, engine: str, device: str = "cpu") -> Labels:
    """The nearest centroid of each vector, int32 (n,)."""
    _require_float32(x)
    if by := exponent(x, centroids):
        return assign(_scaled(x, -by), _scaled(centroids, -by), engine, device)
    offset = centroids.mean(0, dtype=np.float64).astype(np.float32)
    labels: Labels = np.empty(len(x), np.int32)
    _label(x, offset, _engine(engine, device)(centroids - offset), labels)
    return labels


MINIBATCH_STARTS = 3
"""scikit-learn's default at the time of the released MaskContrast code."""


def minibatch_kmeans(x: Floats, k: int, seed: int, batch: int = 1000, n_init: int = MINIBATCH_STARTS) -> KMeansResult:
    """scikit-learn's MiniBatchKMeans with `random_state=seed`: the algorithm of the released MaskContrast code."""
    from sklearn.cluster import MiniBatchKMeans

    if k > len(x):
        raise SettingError(f"cannot make {k} clusters of {len(x)} vectors by mini-batches: choose a smaller number")
    if by := exponent(x):
        return minibatch_kmeans(_scaled(x, -by), k, seed, batch, n_init).times(by)
    model = MiniBatchKMeans(n_clusters=k, batch_size=batch, n_init=n_init, random_state=seed).fit(x)
    labels = model.labels_.astype(np.int32)
    converged = model.n_iter_ < model.max_iter
    empty = k - len(np.unique(labels))
    centroids = model.cluster_centers_.astype(np.float32)
    return KMeansResult(labels, centroids, float(model.inertia_), model.n_iter_, converged, empty, "minibatch")


def _require_float32(x: Floats) -> None:
    if x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous:
        raise InternalError(f"vectors {x.shape} {x.dtype}: expected float32 (n, d), C-contiguous")


def _blocks(x: Floats, offset: Floats | None) -> Iterator[tuple[slice, Floats]]:
    """Fixed blocks of vectors minus the offset, and where they lie."""
    rows = max(_BLOCK // x.shape[1], 1024)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        yield slice(start, start + len(block)), block if offset is None else block - offset


def _pass(
    x: Floats, offset: Floats | None, nearest: Nearest, labels: Labels, clusters: int, weights: Weights | None
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Label every vector in place; returns how many labels changed, the sum of each cluster's vectors, and its size."""
    changed = 0
    sums, sizes = np.zeros((clusters, x.shape[1])), np.zeros(clusters)
    for at, block in _blocks(x, offset):
        found = nearest(block).astype(np.int32)
        changed += np.count_nonzero(found != labels[at])
        labels[at] = found
        for start in range(0, len(found), _SUM_ROWS):
            part = slice(start, start + _SUM_ROWS)
            sums += _cluster_sums(block[part], found[part], clusters, None if weights is None else weights[at][part])
        sizes += np.bincount(found, None if weights is None else weights[at], clusters)
    return changed, sums, sizes


def _cluster_sums(rows: Floats, labels: Labels, clusters: int, weights: Weights | None) -> NDArray[np.floating[Any]]:
    entries = np.ones(len(rows), np.float32) if weights is None else weights
    one_per_row = entries, labels, np.arange(len(rows) + 1, dtype=np.int32)
    return np.asarray(csc_array(one_per_row, shape=(clusters, len(rows))) @ rows)


def _label(x: Floats, offset: Floats | None, nearest: Nearest, labels: Labels) -> None:
    for at, block in _blocks(x, offset):
        labels[at] = nearest(block)


def _squares(rows: Floats) -> Floats:
    return np.asarray(np.einsum("nd,nd->n", rows, rows), np.float32)


def _spread(x: Floats, weights: Weights | None) -> tuple[Floats, float]:
    """Mean, float32 (d,), and the variance of a dimension on average."""
    total, squares = np.zeros(x.shape[1]), 0.0
    for at, block in _blocks(x, None):
        exact = block.astype(np.float64)
        weighted = exact if weights is None else exact * weights[at, None]
        total += weighted.sum(0)
        squares += float(np.vdot(weighted, exact))
    number = len(x) if weights is None else float(weights.sum())
    mean = total / number
    return mean.astype(np.float32), max(squares / number - float(mean @ mean), 0.0) / x.shape[1]
