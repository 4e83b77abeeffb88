"""What clustering costs beside faiss and scikit-learn, as ratios of one run: python tests/benchmarks/clustering.py

81,000 vectors of 32 dimensions: 30 pictures of 480 × 360 at stride 8, reduced. The same starts for all.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import kmeans_plusplus

from bench import cluster

VECTORS, WIDTH, GROUPS, ITERATIONS = 81_000, 32, 100, 50
CLUSTERS = (21, 50, 100, 200, 500)


def seconds(work: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def data() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((GROUPS, WIDTH))[rng.integers(0, GROUPS, VECTORS)]
    return (centres + 1.2 * rng.standard_normal((VECTORS, WIDTH))).astype(np.float32)


def faiss_kmeans(x: np.ndarray, start: np.ndarray) -> None:
    import faiss

    # Without this bound faiss would train on 256 vectors per centroid.
    model = faiss.Kmeans(WIDTH, len(start), niter=ITERATIONS, max_points_per_centroid=len(x))
    model.train(x, init_centroids=start)


def lloyd(x: np.ndarray, start: np.ndarray, engine: str) -> None:
    cluster.lloyd(x, start, engine=engine, iterations=ITERATIONS, tolerance=0)


def measure() -> dict[str, Any]:
    """Seconds per run, and ratios: starts against scikit-learn's, Lloyd against faiss.Kmeans at as many iterations.

    What is compared is timed in turns, and the shortest of three is kept, so that a busy machine disturbs both alike.
    """
    x = data()
    most = max(CLUSTERS)
    (starts,) = cluster.kmeans_plus_plus(x, most, [0])
    ours = min(seconds(cluster.kmeans_plus_plus, x, most, [0]) for _ in range(3))
    theirs = seconds(lambda: kmeans_plusplus(x, most, random_state=0, n_local_trials=1))
    figures: dict[str, Any] = {"starts_s": {"ours": ours, "scikit-learn": theirs}, "starts_ratio": ours / theirs}

    engines = [name for name in cluster.ENGINES if name != "faiss" or cluster.faiss_available()]
    runs: dict[str, dict[str, float]] = {}
    for k in CLUSTERS:
        works: dict[str, Callable[[], None]] = {name: functools.partial(lloyd, x, starts[:k], name) for name in engines}
        if cluster.faiss_available():
            works["faiss.Kmeans"] = functools.partial(faiss_kmeans, x, starts[:k])
        turns = [{name: seconds(work) for name, work in works.items()} for _ in range(3)]
        runs[f"K={k}"] = {name: min(turn[name] for turn in turns) for name in works}
    figures["lloyd_s"] = runs
    if cluster.faiss_available():
        totals = {name: sum(run[name] for run in runs.values()) for name in (*engines, "faiss.Kmeans")}
        figures["lloyd_ratio_to_faiss_kmeans"] = {name: totals[name] / totals["faiss.Kmeans"] for name in engines}
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201
