"""K-means of objects: one pooled vector per picture, its cluster painted on the foreground, the rest is background.

Supplement of arXiv 2102.06191, section 4: mean embeddings of the foreground objects are clustered using the
L2-normalised vectors; the saliency head identifies the background. K counts the background; a data set without a
background class has K clusters of objects, and what is not painted is one cluster more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Outcome, Painting, Work
from bench.objects import Objects, paint_objects
from bench.settings import ObjectSettings, mask_set

from ._clustering import FACTS, cluster_vectors, dimensions, fit_reduction, rank_notes, reduced_block, source_of
from ._settings import ClusterSettings, effort_note

__all__ = ["pooled", "run_objects"]

BACKGROUND = 0
"""The id of what is not painted; objects follow."""


def run_objects(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """Cluster the objects of a split by settled settings, and count the pixels of each cluster and class."""
    from bench import cluster

    scored = work.objects("eval", settings)
    fitted = scored if settings.fit == "eval" else work.objects("train", settings, labels=False)
    vectors = _clustered(fitted, settings)
    wanted = settings.clusters - (work.background is not None)
    clusters = min(wanted, len(vectors))
    notes = _notes(work, settings, scored, wanted, clusters)
    ids = np.zeros(len(scored.found), np.int32)
    if not clusters:
        return _outcome(scored, ids, 0, notes=notes)
    reduction = fit_reduction([vectors], vectors.shape[1], settings)
    reduced = reduced_block(vectors, reduction, settings)
    found = cluster_vectors(work, settings, reduced, clusters, seed)
    own = reduced_block(scored.vectors[scored.found], reduction, settings)
    if settings.fit == "train":
        ids[scored.found] = 1 + cluster.assign(own, found.centroids, settings.engine, work.device)
    else:
        ids[scored.found] = 1 + (found.labels if settings.blank == "skip" else found.labels[scored.found])
    notes = (*notes, *rank_notes(settings, reduced.shape[1]), effort_note(settings))
    outcome = _outcome(scored, ids, clusters, notes=notes)
    outcome.arrays["centroids"] = found.centroids
    outcome.facts |= {name: float(getattr(found, name)) for name in FACTS}
    if reduction is not None:
        outcome.shared = reduction.arrays()
    return outcome


def _clustered(objects: Objects, settings: ClusterSettings) -> NDArray[np.float32]:
    """The vectors that are clustered."""
    return objects.vectors if settings.blank == "zero" and objects.found.any() else objects.vectors[objects.found]


def _outcome(scored: Objects, ids: NDArray[np.int32], clusters: int, *, notes: tuple[str, ...]) -> Outcome:
    """Counts of objects painted with `ids`, those of pictures without foreground being 0."""
    return Outcome(
        counts=paint_objects(scored.tables, ids, BACKGROUND, clusters + 1),
        painting=Painting(objects=ids, around=BACKGROUND),
        arrays={"objects": ids, "around": np.array(BACKGROUND, np.int32)},
        notes=notes,
        facts={"objects": float(scored.found.sum()), "pictures_without_foreground": float((~scored.found).sum())},
    )


def pooled(settings: ObjectSettings) -> str:
    """What the vectors of objects are, for the reader of a table."""
    kind = "mean" if settings.pooling == "mean" or mask_set(settings.foreground) else "logit-weighted"
    return f"objects: {kind} embedding of {source_of(settings)}"


def _described(settings: ClusterSettings) -> str:
    steps = {"l2": ["L2-normalised"], "standardize": ["standardised"]}.get(settings.normalize, [])
    steps += [f"PCA {settings.pca}{', whitened' if settings.whiten else ''}"] if dimensions(settings) else ["no PCA"]
    return ", ".join([pooled(settings), *steps])


def _notes(work: Work, settings: ClusterSettings, scored: Objects, wanted: int, clusters: int) -> tuple[str, ...]:
    notes = [_described(settings)]
    if work.background is None:
        notes.append("no background class: pixels without foreground are one cluster more")
    blank = int((~scored.found).sum())
    if not clusters:
        notes.append(f"none of the {blank} pictures has a foreground: everything is background")
    elif blank:
        notes.append(f"{blank} of {len(scored.found)} pictures have no foreground: they are all background")
    if 0 < clusters < wanted:
        extra = settings.clusters - wanted
        notes.append(f"K was cut from {settings.clusters} to {clusters + extra}: there are {clusters} objects")
    for note in notes[1:]:
        work.say(note)
    return tuple(notes)
