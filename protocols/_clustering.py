"""What `kmeans` and `overclustering` share: vectors of all maps, reduced once, then clustered for each K and seed.

What is clustered are the cells of the maps, or objects (`_objects`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Maps, Outcome, Painting, VectorStream, Work
from bench.distinct import Gatherer, multiplicities, spread_out
from bench.errors import SettingError
from bench.settings import ObjectSettings, mask_set

from ._settings import ClusterSettings, effort_note, settle, with_effort

if TYPE_CHECKING:
    from bench.cluster import KMeansResult, Reduction

__all__ = ["cluster_vectors", "fit_reduction", "predict", "run"]


def run(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """Cluster objects or pixels, as the settings and the method say; a network's own clusters are taken as they are."""
    if work.kind == "cluster_prob":
        assignments, own = _likeliest(work), {"settled": {"unit": "network"}}
        return Outcome(counts=work.count(assignments, settings.clusters), assignments=assignments, facts=own)
    settled = settle(settings, work.foreground)
    outcome = _run_settled(work, settled, seed)
    asked, used = asdict(settings), asdict(settled)
    # what tables cannot tell from the row's settings, as `auto` stays in them
    outcome.facts["settled"] = {name: value for name, value in used.items() if value != asked[name]}
    return outcome


def _run_settled(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    if settings.unit == "pixel":
        return _run_pixels(work, settings, seed)
    from ._objects import run_objects

    return run_objects(work, settings, seed)


def _run_pixels(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """Cluster the vectors of cells and count the pixels of each cluster and class.

    The ids of a picture are brought to the size of its label map by nearest neighbour (supplement, section 4: upsampled
    to the original resolution before the Hungarian algorithm; the kind of interpolation is not stated, nearest is the
    only one that ids allow).
    """
    if settings.background == "saliency":
        return _run_foreground(work, settings, seed)
    sources = {split: work.maps(split) for split in _splits(settings)}
    reduced, found = _found(work, settings, sources, seed, "")
    return _outcome(work, settings, reduced, found, _split(found["labels"], sources["eval"].grids))


def _run_foreground(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """The same with cells of the foreground: its pixels take the clusters of their cells, all others are background.

    K counts the background; without a background class there are K clusters and what is not foreground.
    """
    sources = {split: Kept(work.maps(split), work.cells(split, settings)) for split in _splits(settings)}
    wanted = settings.clusters - (work.background is not None)
    clusters = min(wanted, *(kept.vectors for kept in sources.values()))
    held = sources["eval"].cells
    note = f"pixels of {source_of(settings)}; the rest is background"
    if not clusters:
        nothing = [np.zeros(cells.shape, np.uint8) for cells in held]
        work.say("none of the pictures has a foreground: everything is background")
        notes = (note, "none of the pictures has a foreground: everything is background")
        painting = Painting(cells=nothing, around=0)
        return Outcome(counts=work.count(nothing, 1), assignments=list(nothing), painting=painting, notes=notes)
    if clusters < wanted:
        note += f"; K was cut from {wanted} to {clusters} clusters of the foreground, the number of its vectors"
    settings = replace(settings, clusters=clusters)
    digest = hashlib.sha256(b"".join(np.packbits(cells).tobytes() for kept in sources.values() for cells in kept.cells))
    reduced, found = _found(work, settings, sources, seed, digest.hexdigest())
    assignments = []
    for cells, labels in zip(held, np.split(found["labels"], np.cumsum([c.sum() for c in held])[:-1]), strict=True):
        ids = np.zeros(cells.shape, np.min_scalar_type(clusters))
        ids[cells] = 1 + labels
        assignments.append(ids)
    outcome = _outcome(work, replace(settings, clusters=clusters + 1), reduced, found, assignments, inside=settings)
    outcome.arrays["around"] = np.array(0, np.int32)
    outcome.painting = Painting(cells=assignments, around=0)
    outcome.notes = (note, *outcome.notes)
    return outcome


def predict(work: Work, settings: ClusterSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The clusters of a finished row on other pictures: each cell or object takes the nearest centroid."""
    from bench import cluster

    if work.kind == "cluster_prob":
        return Painting(cells=_likeliest(work))
    settings = settle(settings, work.foreground)
    reduction = cluster.Reduction.of_arrays(arrays, l2=settings.normalize == "l2") if "mean" in arrays else None
    centroids, inside = arrays.get("centroids"), settings.background == "saliency"
    around = 0 if inside else None

    def nearest(block: NDArray[np.float32]) -> NDArray[np.int32]:
        if centroids is None:
            return np.zeros(len(block), np.int32)
        vectors = reduced_block(block, reduction, settings)
        return np.add(cluster.assign(vectors, centroids, settings.engine, work.device), int(inside), dtype=np.int32)

    if settings.unit == "object":
        objects = work.objects("eval", settings, labels=False)
        ids = np.zeros(len(objects.found), np.int32)
        if objects.found.any():
            ids[objects.found] = nearest(objects.vectors[objects.found])
        return Painting(objects=ids, around=around)
    maps = work.maps("eval")
    return Painting(
        cells=[nearest(block).reshape(grid) for block, grid in zip(maps, maps.grids, strict=True)], around=around
    )


def _likeliest(work: Work) -> list[NDArray[np.integer[Any]]]:
    """The cluster of largest probability of every cell (h, w), the first of equal ones."""
    maps = work.maps("eval")
    narrow = np.min_scalar_type(maps.channels)
    return [block.argmax(1).astype(narrow).reshape(grid) for block, grid in zip(maps, maps.grids, strict=True)]


def _splits(settings: ClusterSettings) -> tuple[str, ...]:
    return ("eval",) if settings.fit == "eval" else ("eval", "train")


def _found(
    work: Work, settings: ClusterSettings, sources: Mapping[str, VectorStream], seed: int, cells: str
) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]:
    """Reduced vectors and their clustering; cells: what tells the kept cells from others."""
    about = {"stage": "vectors", "version": 2, "cells": cells}
    about |= {key: getattr(settings, key) for key in ("normalize", "pca", "whiten", "fit")}
    reduced = work.remember(about, lambda: _reduce(settings, sources), keep=True)
    record = {**asdict(settings), "seed": seed, "stage": "clusters", "cells": cells}
    return reduced, work.remember(record, lambda: _cluster(work, settings, reduced, seed), keep=False)


def _outcome(
    work: Work,
    settings: ClusterSettings,
    reduced: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    assignments: Iterable[NDArray[np.integer[Any]]],
    inside: ClusterSettings | None = None,
) -> Outcome:
    held = list(assignments)
    return Outcome(
        counts=work.count(held, settings.clusters, inside=inside),
        assignments=held,
        arrays={"centroids": found["centroids"]},
        shared={name: reduced[name] for name in ("mean", "scale", "components", "explained") if name in reduced},
        notes=(*rank_notes(settings, reduced["vectors"].shape[1]), effort_note(settings)),
        facts={name: found[name].item() for name in FACTS},
    )


class Kept:
    """The cells of maps that lie in a foreground, bool (h, w) each; pictures without any give no block."""

    def __init__(self, maps: Maps, cells: Sequence[NDArray[np.bool_]]) -> None:
        self._maps, self.cells = maps, cells
        self.names, self.grids, self.channels, self.key = maps.names, maps.grids, maps.channels, maps.key
        self.vectors = int(sum(held.sum() for held in cells))

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block, held in zip(self._maps, self.cells, strict=True):
            if held.any():
                yield block[held.reshape(-1)]


FACTS = ("inertia", "empty", "iterations", "converged")


def _split(array: NDArray[Any], grids: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
    """The ids of each picture, (h, w), out of those of all."""
    ends = np.cumsum([h * w for h, w in grids])
    for block, grid in zip(np.split(array, ends[:-1]), grids, strict=True):
        yield block.reshape(grid)


def source_of(settings: ObjectSettings) -> str:
    """Where a settled foreground comes from, for the reader of a table."""
    files = mask_set(settings.foreground)
    return f"the masks {files}" if files else f"the method's own foreground (logit above {settings.threshold:g})"


def rank_notes(settings: ClusterSettings, kept: int) -> tuple[str, ...]:
    """What to say where the PCA kept fewer dimensions than it was asked for."""
    if dimensions(settings) > kept:
        return (f"PCA to {settings.pca} dimensions was asked for; the features have rank {kept}, which is kept",)
    return ()


def dimensions(settings: ClusterSettings) -> int:
    """What settled settings say of the PCA."""
    return int(settings.pca)


def _reduce(settings: ClusterSettings, sources: Mapping[str, VectorStream]) -> dict[str, NDArray[Any]]:
    """Vectors of the scored split, and of the split that is clustered where that is another (see `Gathered`)."""
    source = sources[settings.fit]
    reduction = fit_reduction(source, source.channels, settings)
    arrays = _gather(sources["eval"], settings, reduction, "")
    if settings.fit == "train":
        arrays |= _gather(source, settings, reduction, "train_")
    if reduction is not None:
        arrays |= reduction.arrays()
    return arrays


def fit_reduction(blocks: Iterable[NDArray[np.float32]], channels: int, settings: ClusterSettings) -> Reduction | None:
    """From a pass over vectors; none where they are taken as they are, or only brought to unit length."""
    from bench import cluster

    assert settings.normalize != "auto"
    if not dimensions(settings) and settings.normalize != "standardize":
        return None
    moments = cluster.Moments(channels)
    for block in blocks:
        moments.add(cluster.normalize_l2(block) if settings.normalize == "l2" else block)
    whiten = settings.whiten and dimensions(settings) > 0
    return cluster.fit_reduction(moments, dimensions(settings), whiten, settings.normalize)


def reduced_block(
    block: NDArray[np.float32], reduction: Reduction | None, settings: ClusterSettings
) -> NDArray[np.float32]:
    """Vectors (n, D) as they are clustered, (n, d)."""
    from bench.cluster import normalize_l2

    if reduction is not None:
        return reduction.apply(block)
    return normalize_l2(block) if settings.normalize == "l2" else block


def _gather(
    maps: VectorStream, settings: ClusterSettings, reduction: Reduction | None, name: str
) -> dict[str, NDArray[Any]]:
    """The second pass: the reduced vectors of a split, the only copy that is kept in memory."""
    gatherer = Gatherer(maps.vectors, lambda block: reduced_block(block, reduction, settings))
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
    if settings.algorithm == "minibatch" and index is not None:
        vectors, index = spread_out(vectors, index), None  # it draws its batches from all vectors, repeated ones too
    number = len(vectors) if index is None else len(index)
    if settings.clusters > number:
        raise SettingError(
            f"K = {settings.clusters} is more than the {number} vectors of the split that is clustered: ask for at "
            "most that many, or use more or larger pictures"
        )
    weights = None if index is None else multiplicities(index, len(vectors))
    found = cluster_vectors(work, settings, vectors, settings.clusters, seed, weights)
    labels = found.labels
    if settings.fit == "train":
        labels, index = (
            cluster.assign(reduced["vectors"], found.centroids, settings.engine, work.device),
            reduced.get("index"),
        )
    labels = labels.astype(np.min_scalar_type(settings.clusters))
    facts = {name: np.array(getattr(found, name)) for name in FACTS}
    return {"labels": labels if index is None else spread_out(labels, index), "centroids": found.centroids, **facts}


def cluster_vectors(
    work: Work,
    settings: ClusterSettings,
    vectors: NDArray[np.float32],
    clusters: int,
    seed: int,
    weights: NDArray[np.float64] | None = None,
) -> KMeansResult:
    """The clustering of vectors (n, d), each standing for `weights` of itself, into so many clusters."""
    from bench import cluster

    state = settings.first_state + seed
    if settings.algorithm == "minibatch":
        return cluster.minibatch_kmeans(vectors, clusters, state)
    settings = with_effort(settings)
    effort = cluster.Effort(
        starts=settings.restarts,
        candidates=settings.candidates,
        sample=settings.sample,
        passes=settings.passes,
        finished=settings.finished,
    )
    with work.progress(effort.steps(clusters, settings.iterations), f"K={clusters}, seed {seed}") as tick:
        return cluster.kmeans(
            vectors,
            clusters,
            state,
            engine=settings.engine,
            effort=effort,
            iterations=settings.iterations,
            tolerance=settings.tolerance,
            device=work.device,
            weights=weights,
            tick=tick,
        )
