"""How much scoring costs, as ratios measured in one run: python tests/benchmarks/scoring.py

65 pictures of 512 × 512 (17 million pixels), 21 classes, 5 % void, random cluster ids: nothing to exploit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench import metrics

PICTURES, SIDE, CLASSES, VOID = 65, 512, 21, 255


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shortest(repeats: int, *works: Callable[[], Any]) -> list[float]:
    """The shortest time of each work, measured in turns, so that a busy machine disturbs all alike."""
    turns = [[seconds(work) for work in works] for _ in range(repeats)]
    return [min(times) for times in zip(*turns, strict=True)]


def data(clusters: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (PICTURES, SIDE, SIDE)
    ids = rng.integers(0, clusters, shape).astype(np.min_scalar_type(clusters - 1))
    labels = rng.integers(0, CLASSES, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.05] = VOID
    return ids, labels


def measure_clusters(clusters: int) -> dict[str, float]:
    ids, labels = data(clusters)
    columns = CLASSES + 1
    index = (ids.astype(np.int64) * columns + np.minimum(labels, CLASSES)).ravel()

    def count() -> metrics.Counts:
        return metrics.Counts.from_dense(
            [metrics.count_pixels(*picture, clusters, CLASSES) for picture in zip(ids, labels, strict=True)]
        )

    def count_and_score() -> None:
        confusion = count().confusion()
        metrics.score_rules(confusion, background=0)
        metrics.ari(confusion)
        metrics.nmi(confusion)

    def one_pair() -> None:
        valid = labels != VOID
        mine, theirs = ids == 1, labels == 1
        np.count_nonzero(mine & theirs & valid)
        np.count_nonzero((mine | theirs) & valid)

    counts = count()
    bare, ours = shortest(15, lambda: np.bincount(index, minlength=clusters * columns), count_and_score)
    pair, every_floor = shortest(3, one_pair, lambda: metrics.evaluate(counts, background=0, seed=0))
    return {
        "bare_bincount_s": bare,
        "count_match_score_s": ours,
        "ratio_to_bare_bincount": ours / bare,
        "speedup_over_pair_scans": pair * clusters * CLASSES / ours,
        "all_scores_and_floors_s": every_floor,
    }


def measure() -> dict[str, dict[str, float]]:
    """Times and ratios for 21 and 500 clusters."""
    return {f"K={clusters}": measure_clusters(clusters) for clusters in (21, 500)}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201
