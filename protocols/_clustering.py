"""What `kmeans` and `overclustering` share: vectors of all maps, reduced once, then clustered for each K and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Maps, Outcome, Scope, Work
from bench.distinct import Gatherer
from bench.errors import MismatchError
from bench.records import Choice, Preset, Source
from bench.settings import InputSettings, setting

if TYPE_CHECKING:
    from bench.cluster import Reduction

__all__ = ["PRESETS", "ClusterSettings", "engine_for", "run"]


Engine = Literal["auto", "faiss", "sklearn", "torch"]


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(InputSettings):
    """How vectors are made from maps and clustered."""

    clusters: int = setting(0, "K; 0: the number of classes", minimum=0)
    normalize: Literal["none", "l2", "standardize"] = setting(
        "none", "each vector to unit length (l2), or each dimension to unit variance (standardize), before the PCA"
    )
    pca: int = setting(32, "dimensions kept by an exact PCA; 0: no PCA", minimum=0)
    whiten: bool = setting(True, "each dimension that the PCA keeps is scaled to unit variance")
    algorithm: Literal["lloyd", "minibatch"] = setting(
        "lloyd", "K-means on all vectors, or scikit-learn's MiniBatchKMeans"
    )
    engine: Engine = setting("auto", "what computes Lloyd's nearest centroids")
    iterations: int = setting(50, "at most so many iterations of Lloyd's algorithm", minimum=1)
    tolerance: float = setting(
        1e-4, "stop when the squared shift of the centroids is below this × the mean variance", minimum=0
    )
    fit: Literal["eval", "train"] = setting(
        "eval", "the split whose vectors are clustered; the scored one takes the nearest"
    )


_SHARED = {
    "pca": Choice(32, Source.AUTHOR, "issue 14 of the released code: the dimension of MaskContrast, hardly matters"),
    "whiten": Choice(True, Source.OURS, "the supplement does not say; the released evaluator whitens"),
    "normalize": Choice("none", Source.OURS, "not stated for pixel features"),
    "interpolation": Choice("bicubic", Source.CODE, "the released loader"),
    "iterations": Choice(50, Source.OURS, "not stated; twice the default of faiss"),
    "fit": Choice("eval", Source.CODE, "clusters are fitted on the pictures they are scored on"),
}

PRESETS = (
    Preset(
        name="paper",
        version=1,
        summary="512×512, PCA to 32 dimensions, whitened, all vectors of the scored split",
        choices={"size": Choice("512", Source.CODE, "the released evaluation config"), **_SHARED},
    ),
    Preset(
        name="native",
        version=1,
        summary="as `paper`, each picture at its own size",
        choices={"size": Choice("native", Source.OURS, "no picture is stretched"), **_SHARED},
    ),
)


def engine_for(settings: ClusterSettings, scope: Scope) -> Engine:
    """The engine that will run: `auto` is faiss, or the chunked torch one on a CUDA machine whose faiss has no GPU.

    Raises MismatchError naming both extras where faiss is wanted and not installed.
    """
    from bench import cluster

    if settings.algorithm == "minibatch":
        return "sklearn"
    if settings.engine not in ("auto", "faiss"):
        return settings.engine
    if not cluster.faiss_available():
        raise MismatchError(
            "K-means needs faiss: pip install 'densebench[cpu]', or 'densebench[gpu]' for NVIDIA GPUs (not both); or "
            "do without it, --set engine=sklearn"
        )
    return "torch" if settings.engine == "auto" and cluster.default_engine(scope.device) == "torch" else "faiss"


def run(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """Cluster all vectors into K and count the pixels of each cluster and class.

    The ids of a picture are brought to the size of its label map by nearest neighbour (supplement, section 4: upsampled
    to the original resolution before the Hungarian algorithm; the kind of interpolation is not stated, nearest is the
    only one that ids allow).
    """
    reduced = work.remember(_reduction_record(settings), lambda: _reduce(work, settings), keep=True)
    record = {**asdict(settings), "seed": seed, "stage": "clusters"}
    found = work.remember(record, lambda: _cluster(work, settings, reduced, seed), keep=False)
    grids = work.maps("eval").grids
    assignments = [block.reshape(grid) for block, grid in zip(_split(found["labels"], grids), grids, strict=True)]
    return Outcome(
        counts=work.count(assignments, settings.clusters),
        assignments=assignments,
        arrays={"centroids": found["centroids"]},
        shared={name: reduced[name] for name in ("mean", "scale", "components") if name in reduced},
        notes=_notes(settings, reduced),
        facts={name: found[name].item() for name in ("inertia", "empty", "iterations", "converged")},
    )


def _split(array: NDArray[Any], grids: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
    ends = np.cumsum([h * w for h, w in grids])
    yield from np.split(array, ends[:-1])


def _reduction_record(settings: ClusterSettings) -> dict[str, Any]:
    return {"stage": "vectors", "version": 1} | {
        key: getattr(settings, key) for key in ("normalize", "pca", "whiten", "fit")
    }


def _notes(settings: ClusterSettings, reduced: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    kept = reduced["vectors"].shape[1]
    if settings.pca > kept:
        return (f"PCA to {settings.pca} dimensions was asked for; the features have rank {kept}, which is kept",)
    return ()


def _reduce(work: Work, settings: ClusterSettings) -> dict[str, NDArray[Any]]:
    """Vectors of the scored split, and of the split that is clustered where that is another (see `Gathered`)."""
    source = work.maps("eval" if settings.fit == "eval" else "train")
    reduction = _fit(source, settings)
    arrays = _gather(work.maps("eval"), settings, reduction, "")
    if settings.fit == "train":
        arrays |= _gather(source, settings, reduction, "train_")
    if reduction is not None:
        named = {"mean": reduction.mean, "scale": reduction.scale, "components": reduction.components}
        arrays |= {name: array for name, array in named.items() if array is not None}
    return arrays


def _fit(maps: Maps, settings: ClusterSettings) -> Reduction | None:
    """The first pass over the maps; none where vectors are taken as they are, or only brought to unit length."""
    from bench import cluster

    if not settings.pca and settings.normalize != "standardize":
        return None
    moments = cluster.Moments(maps.channels)
    for block in maps:
        moments.add(cluster.normalize_l2(block) if settings.normalize == "l2" else block)
    return cluster.fit_reduction(moments, settings.pca, settings.whiten and settings.pca > 0, settings.normalize)


def _gather(maps: Maps, settings: ClusterSettings, reduction: Reduction | None, name: str) -> dict[str, NDArray[Any]]:
    """The second pass: the reduced vectors of a split, the only copy that is kept in memory."""
    from bench.cluster import normalize_l2

    def transform(block: NDArray[np.float32]) -> NDArray[np.float32]:
        if reduction is not None:
            return reduction.apply(block)
        return normalize_l2(block) if settings.normalize == "l2" else block

    gatherer = Gatherer(maps.vectors, transform)
    for block in maps:
        gatherer.add(block)
    gathered = gatherer.result()
    arrays: dict[str, NDArray[Any]] = {f"{name}vectors": gathered.vectors}
    if gathered.index is not None:
        arrays[f"{name}index"] = gathered.index
    return arrays


def _cluster(
    work: Work, settings: ClusterSettings, reduced: Mapping[str, NDArray[Any]], seed: int
) -> dict[str, NDArray[Any]]:
    """Labels of all vectors of the scored split, in the smallest type that holds K, and what they follow from."""
    from bench import cluster

    name = "" if settings.fit == "eval" else "train_"
    vectors, index = reduced[f"{name}vectors"], reduced.get(f"{name}index")
    if settings.algorithm == "minibatch":
        # it draws its batches from all vectors, repeated ones too
        found = cluster.minibatch_kmeans(vectors if index is None else vectors[index], settings.clusters, seed)
        index = None
    else:
        weights = None if index is None else np.bincount(index, minlength=len(vectors)).astype(np.float64)
        with work.progress(settings.clusters + settings.iterations, f"K={settings.clusters}, seed {seed}") as tick:
            found = cluster.kmeans(
                vectors,
                settings.clusters,
                seed,
                engine=settings.engine,
                iterations=settings.iterations,
                tolerance=settings.tolerance,
                device=work.device,
                weights=weights,
                tick=tick,
            )
    labels = found.labels
    if settings.fit == "train":
        labels, index = (
            cluster.assign(reduced["vectors"], found.centroids, settings.engine, work.device),
            reduced.get("index"),
        )
    labels = labels.astype(np.min_scalar_type(settings.clusters))
    return {
        "labels": labels if index is None else labels[index],
        "centroids": found.centroids,
        "inertia": np.array(found.inertia),
        "empty": np.array(found.empty),
        "iterations": np.array(found.iterations),
        "converged": np.array(found.converged),
    }
