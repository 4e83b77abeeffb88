"""Scores of a clustering against labels: integer counts in, every published convention out.

Pure functions on arrays. A *confusion* matrix is integer (K, C): pixels of cluster k whose label is class c.
Per-picture tables carry one more column for void pixels; they are kept as `Counts`. IoU is over the data set, never
per picture.

No score depends on how clusters are numbered or in which order pictures are listed: clusters are put in an order that
their pixels decide, pictures in that of their names, before anything is matched or drawn.
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
    "DRAWS",
    "FLOORS",
    "RULES",
    "SCORING",
    "Counts",
    "ari",
    "count_pixels",
    "evaluate",
    "evaluate_predictions",
    "iou",
    "match",
    "nmi",
    "score",
    "score_rules",
]

SCORING = 2
"""Version of what is computed from counts: it rises when a score, a floor or a rule changes. Versions never mix."""

DRAWS = 5
"""How often halves are split, ids permuted and layouts exchanged, for each seed of a row."""

FLOORS = ("constant", "null", "exchanged")
"""What a score has to be above, see `evaluate`."""

Integers = NDArray[np.integer[Any]]
Leftover = Literal["none", "background", "dropped"]

_BLOCK = 1 << 18  # pixels: the temporaries of one block stay in the processor's cache
_HELD_OUT, _NULL = 1, 2  # independent random streams of one seed
_NO_CLASS, _LEFT_OVER = -1, -2
"""Clusters whose partner has none of their pixels, and those for which no class was left: neither predicts a class."""


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
        np.add.at(out, (self.picture, self.cluster, self.label), self.pixels)
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

    def restricted(self, counted: NDArray[np.bool_]) -> Counts:
        """The same with the pixels of all labels that are not `counted` (C + 1,) as void."""
        void = self.shape[2] - 1
        label = np.where(counted[self.label], self.label, np.int32(void)).astype(np.int32)
        return Counts(self.picture, self.cluster, label, self.pixels, self.shape)

    def reordered(self, pictures: Sequence[int]) -> Counts:
        """The same pictures in another order: `pictures[i]` becomes picture i."""
        number = np.empty(self.shape[0], np.int32)
        number[np.asarray(pictures, np.int64)] = np.arange(self.shape[0], dtype=np.int32)
        return Counts(number[self.picture], self.cluster, self.label, self.pixels, self.shape)

    def renamed(self, order: Integers) -> Counts:
        """Cluster `order[i]` becomes cluster i; clusters that are not named must be empty, and are gone."""
        number = np.zeros(self.shape[1], np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        shape = (self.shape[0], len(order), self.shape[2])
        return Counts(self.picture, number[self.cluster], self.label, self.pixels, shape)

    def shuffled(self, rng: np.random.Generator, among: Integers) -> Counts:
        """The same pictures with the cluster ids of each that are `among` these permuted among themselves."""
        pictures, clusters, _ = self.shape
        ids = np.broadcast_to(np.arange(clusters, dtype=np.int32), (pictures, clusters)).copy()
        ids[:, among] = rng.permuted(np.broadcast_to(among.astype(np.int32), (pictures, len(among))), axis=1)
        return Counts(self.picture, ids[self.picture, self.cluster], self.label, self.pixels, self.shape)

    def canonical(self, given: Sequence[int] = ()) -> tuple[Counts, NDArray[np.int64]]:
        """The clusters that have a pixel, in an order that their pixels alone decide: those `given` first, by number.

        Returns the counts and the cluster (of before) of each. Clusters that cannot be told apart by their counts are
        equal to every score, so their order does not matter.
        """
        by_cluster = np.lexsort((self.label, self.picture, self.cluster))
        cluster = self.cluster[by_cluster]
        entries = np.stack([self.picture, self.label, self.pixels], axis=1)[by_cluster].astype(">i8")
        ids, starts = np.unique(cluster, return_index=True)
        keys = dict(zip(ids.tolist(), map(bytes, np.split(entries, starts[1:])), strict=True))
        free = sorted((id_ for id_ in keys if id_ not in given), key=keys.__getitem__)
        order = np.array([*(id_ for id_ in sorted(given) if id_ in keys), *free], np.int64)
        return self.renamed(order), order

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
    """The assignment with the largest sum of gains."""
    clusters, classes = linear_sum_assignment(gain, maximize=True)
    matched = np.full(len(gain), _LEFT_OVER, np.int64)
    matched[clusters] = np.where(gain[clusters, classes] > 0, classes, _NO_CLASS)
    return matched


def _many_to_one(gain: NDArray[Any]) -> NDArray[np.int64]:
    """The class of largest gain for each cluster, the smaller one when equal."""
    return np.where(gain.max(1, initial=0) > 0, gain.argmax(1), _NO_CLASS)


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
    """The class of each cluster under a rule of `RULES`, int64 (K,); negative = no class.

    A pair without gain is no match: a cluster with no pixel of the class that it would take gets -1 under every rule.
    One-to-one gives -2 to the K - C clusters for which no class is left when K > C, and leaves classes without a
    cluster when K < C.
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

    confusion: (K, C). matched: (K,) class of each cluster, as `match` gives it. leftover: what the clusters are for
    which no class was left: `none`: their pixels are misses, and no class's false positives, as are those of all
    clusters without a class; `background`: they predict the background class; `dropped`: their pixels leave the count.
    among: the classes that means are taken over; empty = all.

    miou: mean IoU over all classes, an absent class as 0. miou_present: over classes that have a pixel in the ground
    truth. miou_occurring: over classes that have one in the ground truth or are predicted somewhere (the mean without
    NaN of the codes of STEGO and PiCIE); what is no class, and void, is no prediction. foreground_miou: as miou without
    the background class; None where the data has none. pixel_accuracy: share of pixels of the right class.
    class_accuracy: mean recall over present classes. iou: per class, 0 where undefined.
    """
    if leftover == "dropped":
        confusion, matched = confusion[matched != _LEFT_OVER], matched[matched != _LEFT_OVER]
    elif leftover == "background":
        if background is None:
            raise InternalError("leftover clusters cannot be background: the data set has no background class")
        matched = np.where(matched == _LEFT_OVER, background, matched)
    classes = confusion.shape[1]
    predicted = np.zeros((classes + 1, classes), np.int64)  # the last row collects what predicts no class
    np.add.at(predicted, np.where(matched < 0, classes, matched), confusion)
    hits = predicted.diagonal()
    truth, guessed = confusion.sum(0), predicted[:classes].sum(1)
    class_iou = hits / np.maximum(guessed + truth - hits, 1)
    recall = hits / np.maximum(truth, 1)
    counted = np.isin(np.arange(classes), among) if among else np.ones(classes, np.bool_)
    present = (truth > 0) & counted
    foreground = counted & (np.arange(classes) != background)
    return {
        "miou": _mean(class_iou[counted]),
        "miou_present": _mean(class_iou[present]),
        "miou_occurring": _mean(class_iou[present | ((guessed > 0) & counted)]),
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

Figures = dict[str, Any]
_Judge = Callable[[Counts], dict[str, Figures]]
"""The figures of counts by rule."""


def evaluate(
    counts: Counts,
    *,
    background: int | None,
    seed: int,
    names: Sequence[str] = (),
    given: Sequence[int] = (),
    exchanged: Sequence[Counts] = (),
) -> dict[str, Any]:
    """Every score of one clustering, as JSON-ready data.

    names: of the pictures, all different: with them, their order decides nothing; empty: it stands for that of their
    names. given: ids that the clustering was given, such
    as the background of objects. exchanged: counts of the same pictures under the layouts of others (see
    `bench.exchange`), one for each draw. seed: of halves and permutations.

    scores: rule -> the figures of `score` and `match`, the class of each cluster (-1 = none); where K is above the
    number of classes, also `RULE:background` (None without a background class) and `RULE:dropped`.
    held_out: rule -> figures, the rule fitted on one half of the pictures and applied to the other, both ways.
    Floors: constant -> figures of the class with most pixels, predicted everywhere. null: rule -> figures after the
    ids of each picture were permuted among themselves, but those that were given. exchanged: rule -> figures after
    each picture took the layout of another. held_out, null and exchanged are means over several draws, whose
    number and standard deviations are in `draws`; they are None, with the reason in `…_note`, for a single picture.
    ari, nmi: of clusters and classes. pixels, void: how many were scored and were not. void_pictures: pictures without
    one scored pixel.
    """
    order = _by_name(names, counts)
    named, ids = counts.reordered(order).canonical(given)
    fixed = int(np.isin(ids, given).sum())
    confusion = named.confusion()
    scores = score_rules(confusion, background, left_over=counts.shape[1] > confusion.shape[1])
    for rule in RULES:
        found = np.full(counts.shape[1], _NO_CLASS, np.int64)
        found[ids] = scores[rule]["match"]
        scores[rule]["match"] = found.tolist()

    def judge(drawn: Counts) -> dict[str, Figures]:
        return _all_rules(drawn.confusion(), background)

    free = np.arange(fixed, named.shape[1])
    layouts = (taken.reordered(order).canonical(given)[0] for taken in exchanged)
    return {
        "scores": scores,
        **_drawn(
            held_out=[_crossed(named, background, rng) for rng in _streams(seed, _HELD_OUT, named)],
            null=[judge(named.shuffled(rng, free)) for rng in _streams(seed, _NULL, named)],
            exchanged=[judge(taken) for taken in layouts] if named.shape[0] > 1 else [],
        ),
        **_notes(named, exchanged, "" if named.shape[0] > 1 else "held-out matching needs at least two pictures"),
        "constant": _constant(confusion, background),
        **_whatever_the_rule(named),
    }


def evaluate_predictions(
    counts: Counts,
    matched: Integers,
    *,
    background: int | None,
    seed: int,
    names: Sequence[str] = (),
    given: Sequence[int] = (),
    exchanged: Sequence[Counts] = (),
    among: Sequence[int] = (),
) -> dict[str, Any]:
    """Every score of predicted classes, in the form of `evaluate`, under the one rule `AS_PREDICTED`.

    matched: (K,) the class that each id means, -1 = none. among: the classes that means are taken over; empty = all.
    `null` permutes the classes that were predicted in each picture; nothing is held out.
    """
    order = _by_name(names, counts)
    counts = counts.reordered(order)

    def judge(drawn: Counts) -> dict[str, Figures]:
        return {AS_PREDICTED: score(drawn.confusion(), matched, background, among=among)}

    scores = judge(counts)
    scores[AS_PREDICTED]["match"] = matched.tolist()
    free = np.setdiff1d(counts.cluster, given)
    return {
        "scores": scores,
        **_drawn(
            held_out=[],
            null=[judge(counts.shuffled(rng, free)) for rng in _streams(seed, _NULL, counts)],
            exchanged=[judge(taken) for taken in exchanged] if counts.shape[0] > 1 else [],
        ),
        **_notes(counts, exchanged, "nothing is matched with the labels"),
        "constant": _constant(counts.confusion(), background, among),
        **_whatever_the_rule(counts),
    }


def _by_name(names: Sequence[str], counts: Counts) -> list[int]:
    """The numbers of the pictures in the order of their names."""
    if not names:
        return list(range(counts.shape[0]))
    if len(set(names)) != counts.shape[0]:
        raise InternalError(f"{counts.shape[0]} pictures and {len(set(names))} different names: expected as many")
    return sorted(range(len(names)), key=names.__getitem__)


def _streams(seed: int, stream: int, counts: Counts) -> list[np.random.Generator]:
    """A generator for each draw; none for a single picture, where nothing can be drawn."""
    return [np.random.default_rng([seed, stream, draw]) for draw in range(DRAWS if counts.shape[0] > 1 else 0)]


def _drawn(**parts: Sequence[Mapping[str, Figures]]) -> dict[str, Any]:
    """Mean figures of what was drawn several times, None where nothing was, and number and spread of the `draws`."""
    means = {name: _fold(draws, _average) if draws else None for name, draws in parts.items()}
    spread = {
        name: {"number": len(draws), "sd": _fold(draws, _deviation)} for name, draws in parts.items() if len(draws) > 1
    }
    return {**means, "draws": spread}


def _fold(draws: Sequence[Mapping[str, Figures]], statistic: Callable[[Sequence[Any]], Any]) -> dict[str, Figures]:
    return {
        rule: {metric: statistic([draw[rule][metric] for draw in draws]) for metric in figures}
        for rule, figures in draws[0].items()
    }


def _average(values: Sequence[Any]) -> Any:
    return None if values[0] is None else np.mean(values, axis=0).tolist()


def _deviation(values: Sequence[Any]) -> Any:
    return None if values[0] is None else np.std(values, axis=0, ddof=1).tolist()


def _notes(counts: Counts, exchanged: Sequence[Counts], held_out: str) -> dict[str, str]:
    """Why a figure is missing, "" where it is there."""
    alone = "" if counts.shape[0] > 1 else "it needs at least two pictures"
    layouts = alone or ("" if exchanged else "the protocol gives no map of ids to exchange")
    return {"held_out_note": held_out, "null_note": alone, "exchanged_note": layouts}


def _constant(confusion: Integers, background: int | None, among: Sequence[int] = ()) -> Figures:
    """The figures of one prediction: everywhere the class with most pixels of those that count, the smaller of two."""
    truth = confusion.sum(0)
    counted = np.isin(np.arange(len(truth)), among) if among else np.ones(len(truth), np.bool_)
    likeliest = int(np.where(counted, truth, -1).argmax())
    return score(truth[None], np.array([likeliest]), background, among=among)


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


def score_rules(confusion: Integers, background: int | None, *, left_over: bool | None = None) -> dict[str, Any]:
    """Every rule, matched with the labels it is scored on, as the papers do: see `scores` of `evaluate`.

    left_over: whether the variants for clusters without a class are given; by default where K is above the classes.
    """
    scores: dict[str, Any] = {}
    variants = confusion.shape[0] > confusion.shape[1] if left_over is None else left_over
    for rule, (assign, _) in RULES.items():
        matched = match(confusion, rule)
        scores[rule] = {**score(confusion, matched, background), "match": np.maximum(matched, _NO_CLASS).tolist()}
        if variants and assign is _one_to_one:
            scores[f"{rule}:background"] = (
                None if background is None else score(confusion, matched, background, "background")
            )
            scores[f"{rule}:dropped"] = score(confusion, matched, background, "dropped")
    return scores


def _all_rules(confusion: Integers, background: int | None) -> dict[str, Figures]:
    return {rule: score(confusion, match(confusion, rule), background) for rule in RULES}


def _crossed(counts: Counts, background: int | None, rng: np.random.Generator) -> dict[str, Figures]:
    """Each rule matched on one random half of the pictures and applied to the other, both ways, scored over all.

    All pictures are scored together, as for the headline, so that a class which one half lacks is not counted twice.
    A cluster that the fitting half lacks predicts no class.
    """
    pictures = counts.shape[0]
    first = np.zeros(pictures, np.bool_)
    first[rng.permutation(pictures)[: pictures // 2]] = True
    one = counts.subset(first).confusion()
    other = counts.confusion() - one
    both = np.concatenate([one, other])
    return {rule: score(both, np.concatenate([match(other, rule), match(one, rule)]), background) for rule in RULES}
