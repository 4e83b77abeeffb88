"""Scores of a clustering against labels: integer counts in, every published convention out.

Pure functions on arrays. A *confusion* matrix is integer (K, C): pixels of cluster k whose label is class c.
Per-picture tables carry one more column for void pixels; they are kept as `Counts`. IoU is over the data set, never
per picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from bench.errors import InternalError
from bench.records import IGNORE

__all__ = [
    "AS_PREDICTED",
    "RULES",
    "Counts",
    "ari",
    "count_pixels",
    "evaluate",
    "evaluate_predictions",
    "held_out",
    "iou",
    "match",
    "nmi",
    "null",
    "score",
    "score_rules",
]

Integers = NDArray[np.integer[Any]]
Leftover = Literal["none", "background", "dropped"]

_BLOCK = 1 << 18  # pixels: the temporaries of one block stay in the processor's cache
_HELD_OUT, _NULL = 1, 2  # independent random streams of one seed


# ------------------------------------------------------------------------------------------------------------- counting


def count_pixels(ids: Integers, labels: NDArray[np.uint8], clusters: int, classes: int) -> NDArray[np.int64]:
    """Cross-tabulate the pixels of one picture.

    ids: cluster of each pixel, any shape, 0 … clusters-1. labels: uint8, same shape, 0 … classes-1 and 255 = void.
    Returns (clusters, classes + 1), void pixels in the last column. Raises `InternalError` for values out of range.
    """
    if ids.shape != labels.shape or labels.dtype != np.uint8:
        raise InternalError(
            f"ids {ids.shape} and labels {labels.shape} {labels.dtype}: expected one shape and uint8 labels"
        )
    columns = classes + 1
    narrow = np.min_scalar_type(clusters * columns)
    flat_ids, flat_labels = ids.reshape(-1), labels.reshape(-1)
    counts = np.zeros(clusters * columns, np.int64)
    for start in range(0, flat_ids.size, _BLOCK):
        block = flat_ids[start : start + _BLOCK]
        # Unsigned wrap-around sends 255 to column 0 and class c to column c + 1, faster than any comparison.
        column = flat_labels[start : start + _BLOCK] - np.uint8(IGNORE)
        if int(column.max()) > classes:
            raise InternalError(f"a label is {int(column.max()) - 1}: expected 0 … {classes - 1} or {IGNORE}")
        if int(block.max()) >= clusters or int(block.min()) < 0:
            raise InternalError(f"cluster ids {block.min()} … {block.max()}: expected 0 … {clusters - 1}")
        index = block.astype(narrow)
        index *= columns
        index += column
        counts += np.bincount(index, minlength=counts.size)
    return np.roll(counts.reshape(clusters, columns), -1, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Per-picture counts, without the zeros: `pixels[i]` pixels of `picture[i]` lie in `cluster[i]` with `label[i]`.

    All arrays are 1-D of one length; pixels int64, the others int32. shape: (P, K, C + 1); label C = void.
    A picture holds few of the clusters, so 1,449 pictures × 500 clusters take a few MB instead of 128.
    """

    picture: NDArray[np.int32]
    cluster: NDArray[np.int32]
    label: NDArray[np.int32]
    pixels: NDArray[np.int64]
    shape: tuple[int, int, int]

    @classmethod
    def from_dense(cls, tables: Integers | Sequence[Integers]) -> Counts:
        """From an integer array (P, K, C + 1), or a sequence of P tables (K, C + 1); at least one."""
        where = [np.flatnonzero(table) for table in tables]
        values = [table.reshape(-1)[index] for table, index in zip(tables, where, strict=True)]
        clusters, columns = tables[0].shape
        cluster, label = np.divmod(np.concatenate(where).astype(np.int32), np.int32(columns))
        picture = np.repeat(np.arange(len(where), dtype=np.int32), [len(index) for index in where])
        pixels = np.concatenate(values).astype(np.int64)
        return cls(picture, cluster, label, pixels, (len(where), clusters, columns))

    def dense(self) -> NDArray[np.int64]:
        """The whole array, int64 (P, K, C + 1)."""
        out = np.zeros(self.shape, np.int64)
        out[self.picture, self.cluster, self.label] = self.pixels
        return out

    def total(self) -> NDArray[np.int64]:
        """Sum over the pictures, int64 (K, C + 1)."""
        return self._sum(self.cluster)

    def confusion(self) -> NDArray[np.int64]:
        """Sum over the pictures without void, int64 (K, C)."""
        return self.total()[:, :-1]

    def subset(self, keep: NDArray[np.bool_]) -> Counts:
        """The pictures where `keep` (P,) is true, renumbered in order."""
        number = (np.cumsum(keep) - 1).astype(np.int32)
        at = keep[self.picture]
        shape = (int(np.count_nonzero(keep)), *self.shape[1:])
        return Counts(number[self.picture[at]], self.cluster[at], self.label[at], self.pixels[at], shape)

    def shuffled(self, rng: np.random.Generator) -> Counts:
        """The same pictures with the cluster ids of each permuted on their own."""
        pictures, clusters, _ = self.shape
        ids = np.broadcast_to(np.arange(clusters, dtype=np.int32), (pictures, clusters))
        renamed = rng.permuted(ids, axis=1)[self.picture, self.cluster]
        return Counts(self.picture, renamed, self.label, self.pixels, self.shape)

    def _sum(self, cluster: NDArray[np.int32]) -> NDArray[np.int64]:
        _, clusters, columns = self.shape
        # float64 weights are exact: no sum of pixels comes near 2**53.
        sums = np.bincount(cluster * columns + self.label, weights=self.pixels, minlength=clusters * columns)
        return sums.astype(np.int64).reshape(clusters, columns)


# ------------------------------------------------------------------------------------------------------------- matching


def iou(confusion: Integers) -> NDArray[np.float64]:
    """IoU of every cluster with every class, float64 (K, C) in [0, 1]; 0 where both are empty."""
    union = confusion.sum(1, keepdims=True) + confusion.sum(0, keepdims=True) - confusion
    return np.asarray(confusion / np.maximum(union, 1), np.float64)


def _one_to_one(gain: NDArray[Any]) -> NDArray[np.int64]:
    """The assignment with the largest sum of gains; -1 for clusters without a partner."""
    clusters, classes = linear_sum_assignment(gain, maximize=True)
    matched = np.full(len(gain), -1, np.int64)
    matched[clusters] = classes
    return matched


def _many_to_one(gain: NDArray[Any]) -> NDArray[np.int64]:
    """The class of largest gain for each cluster, the smaller one when equal; class 0 for a cluster without gain."""
    return np.asarray(gain.argmax(1), np.int64)


def _pixels(confusion: Integers) -> Integers:
    return confusion


RULES: Mapping[str, tuple[Callable[[NDArray[Any]], NDArray[np.int64]], Callable[[Integers], NDArray[Any]]]] = {
    "one_to_one_iou": (_one_to_one, iou),
    "one_to_one_pixels": (_one_to_one, _pixels),
    "many_to_one_iou": (_many_to_one, iou),
    "many_to_one_pixels": (_many_to_one, _pixels),
}
"""Every matching rule: how clusters are assigned, and the gain that is maximised."""


AS_PREDICTED = "as_predicted"
"""The rule of ids that mean classes from the start."""


def match(confusion: Integers, rule: str) -> NDArray[np.int64]:
    """The class of each cluster under a rule of `RULES`, int64 (K,); -1 = no class.

    One-to-one leaves K - C clusters without a class when K > C, and C - K classes without a cluster when K < C.
    """
    assign, gain = RULES[rule]
    return assign(gain(confusion))


# -------------------------------------------------------------------------------------------------------------- scoring


def score(
    confusion: Integers,
    matched: Integers,
    background: int | None,
    leftover: Leftover = "none",
    among: Sequence[int] = (),
) -> dict[str, Any]:
    """Scores of a matched clustering, floats in [0, 1].

    confusion: (K, C). matched: (K,) class of each cluster, -1 = none. leftover: what clusters of no class are:
    `none`: their pixels are misses, and no class's false positives; `background`: they predict the background class;
    `dropped`: their pixels leave the count. among: the classes that means are taken over; empty = all.

    miou: mean IoU over all classes, an absent class as 0. miou_present: over classes that have a pixel in the ground
    truth. foreground_miou: as miou without the background class; None where the data has none. pixel_accuracy: share
    of pixels of the right class. class_accuracy: mean recall over present classes. iou: per class, 0 where undefined.
    """
    if leftover == "dropped":
        confusion, matched = confusion[matched >= 0], matched[matched >= 0]
    elif leftover == "background":
        if background is None:
            raise InternalError("leftover clusters cannot be background: the data set has no background class")
        matched = np.where(matched < 0, background, matched)
    classes = confusion.shape[1]
    predicted = np.zeros((classes + 1, classes), np.int64)  # the last row collects what predicts no class
    np.add.at(predicted, matched, confusion)
    hits = predicted.diagonal()
    truth = confusion.sum(0)
    class_iou = hits / np.maximum(predicted[:classes].sum(1) + truth - hits, 1)
    recall = hits / np.maximum(truth, 1)
    counted = np.isin(np.arange(classes), among) if among else np.ones(classes, np.bool_)
    present = (truth > 0) & counted
    foreground = counted & (np.arange(classes) != background)
    return {
        "miou": _mean(class_iou[counted]),
        "miou_present": _mean(class_iou[present]),
        "pixel_accuracy": float(hits.sum() / max(truth.sum(), 1)),
        "class_accuracy": _mean(recall[present]),
        "foreground_miou": None if background is None else _mean(class_iou[foreground]),
        "iou": class_iou.tolist(),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0


# ---------------------------------------------------------------------------------------------- agreement of partitions


def ari(confusion: Integers) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985), at most 1, of clusters and classes; 1.0 for no pixel at all.

    In Python integers: the pairs of 3e9 pixels would overflow 64 bits.
    """
    same_both = _sum_of_squares(confusion)
    same_cluster = _sum_of_squares(confusion.sum(1))
    same_class = _sum_of_squares(confusion.sum(0))
    pixels = int(confusion.sum())
    together = same_both - pixels
    only_cluster, only_class = same_cluster - same_both, same_class - same_both
    apart = pixels**2 - same_both - only_cluster - only_class
    if only_cluster == only_class == 0:
        return 1.0
    agreement = 2 * (together * apart - only_cluster * only_class)
    return agreement / (
        (together + only_class) * (only_class + apart) + (together + only_cluster) * (only_cluster + apart)
    )


def _sum_of_squares(values: Integers) -> int:
    return sum(value * value for value in values[values > 0].tolist())


def nmi(confusion: Integers) -> float:
    """Mutual information of clusters and classes over the mean of their entropies, in [0, 1].

    As in scikit-learn: 1 where both sides are one group or there is no pixel, 0 where only one of them is.
    """
    rows, columns = confusion.sum(1), confusion.sum(0)
    if np.count_nonzero(rows) == np.count_nonzero(columns) <= 1:
        return 1.0
    entropies = _entropy(rows) + _entropy(columns)
    information = entropies - _entropy(confusion)
    if information <= np.finfo(np.float64).eps:
        return 0.0
    return min(2 * information / entropies, 1.0)


def _entropy(counts: Integers) -> float:
    """Entropy in nats of a table of counts that is not all zero."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


# ----------------------------------------------------------------------------------------------------------- evaluation


def evaluate(counts: Counts, *, background: int | None, seed: int) -> dict[str, Any]:
    """Every score of one clustering, as JSON-ready data.

    scores: rule -> the figures of `score` and `match`, the class of each cluster (-1 = none); where clusters are left
    over, also `RULE:background` (None without a background class) and `RULE:dropped`.
    held_out, null: rule -> figures, see the functions of that name; held_out is None for a single picture, and
    `held_out_note` says so. ari, nmi: of clusters and classes. pixels, void: how many were scored and were not.
    void_pictures: pictures without one scored pixel. seed: of the halves and of the null.
    """
    halves = held_out(counts, background, seed)
    return {
        "scores": score_rules(counts.confusion(), background),
        "held_out": halves,
        "held_out_note": "" if halves else "held-out matching needs at least two pictures",
        "null": null(counts, background, seed),
        **_whatever_the_rule(counts),
    }


def evaluate_predictions(
    counts: Counts, matched: Integers, *, background: int | None, seed: int, among: Sequence[int] = ()
) -> dict[str, Any]:
    """Every score of predicted classes, in the form of `evaluate`, under the one rule `AS_PREDICTED`.

    matched: (K,) the class that each id means, -1 = none. among: the classes that means are taken over; empty = all.
    """

    def judged(confusion: Integers) -> dict[str, Any]:
        return score(confusion, matched, background, among=among)

    shuffled = counts.shuffled(np.random.default_rng([seed, _NULL]))
    return {
        "scores": {AS_PREDICTED: {**judged(counts.confusion()), "match": matched.tolist()}},
        "held_out": None,
        "held_out_note": "nothing is matched with the labels",
        "null": {AS_PREDICTED: judged(shuffled.confusion())},
        **_whatever_the_rule(counts),
    }


def _whatever_the_rule(counts: Counts) -> dict[str, Any]:
    """Agreement of ids and labels, and how much was scored."""
    total = counts.total()
    confusion = total[:, :-1]
    scored = counts.label < confusion.shape[1]
    return {
        "ari": ari(confusion),
        "nmi": nmi(confusion),
        "pixels": int(confusion.sum()),
        "void": int(total[:, -1].sum()),
        "void_pictures": counts.shape[0] - len(np.unique(counts.picture[scored])),
    }


def score_rules(confusion: Integers, background: int | None) -> dict[str, Any]:
    """Every rule, matched with the labels it is scored on, as the papers do: see `scores` of `evaluate`."""
    scores: dict[str, Any] = {}
    for rule in RULES:
        matched = match(confusion, rule)
        scores[rule] = {**score(confusion, matched, background), "match": matched.tolist()}
        if (matched < 0).any():
            scores[f"{rule}:background"] = (
                None if background is None else score(confusion, matched, background, "background")
            )
            scores[f"{rule}:dropped"] = score(confusion, matched, background, "dropped")
    return scores


def held_out(counts: Counts, background: int | None, seed: int) -> dict[str, Any] | None:
    """Each rule matched on one random half of the pictures and applied to the other, both ways, scored over all.

    All pictures are scored together, as for the headline, so that a class which one half lacks is not counted twice.
    A cluster that the fitting half lacks takes class 0 under many-to-one (see `match`) and none under one-to-one.
    Returns rule -> figures of `score`, or None for fewer than two pictures.
    """
    pictures = counts.shape[0]
    if pictures < 2:
        return None
    first = np.zeros(pictures, np.bool_)
    first[np.random.default_rng([seed, _HELD_OUT]).permutation(pictures)[: pictures // 2]] = True
    one = counts.subset(first).confusion()
    other = counts.confusion() - one
    both = np.concatenate([one, other])
    return {rule: score(both, np.concatenate([match(other, rule), match(one, rule)]), background) for rule in RULES}


def null(counts: Counts, background: int | None, seed: int) -> dict[str, Any]:
    """Each rule scored after the cluster ids of every picture were permuted on their own.

    The segments stay and their meaning across pictures goes: what a rule gives to meaningless ids of this many
    clusters. Returns rule -> figures of `score`.
    """
    confusion = counts.shuffled(np.random.default_rng([seed, _NULL])).confusion()
    return {rule: score(confusion, match(confusion, rule), background) for rule in RULES}
