"""What dense nearest neighbours cost beside the bare search of faiss, and how much memory they need.

python tests/benchmarks/hummingbird.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pipeline import child, make_pictures
from scoring import shortest

from bench import neighbours
from bench.cluster import faiss_available, normalize_l2
from bench.protocols import _neighbours
from bench.protocols._hummingbird import HummingbirdSettings
from bench.testing import MemorySplit, MemoryWork

GROWTH = 1.1
"""By how many bytes the process may grow for each that it remembers more."""

TRAIN, SCORED, CELLS, WIDTH, CLASSES, MEMORY = 40, 6, 32, 384, 21, 20_000


def pictures(count: int, seed: int) -> MemorySplit:
    """Maps of 32² cells, as a ViT-S/16 gives at 512², and labels of 512²."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((count, CELLS, CELLS, WIDTH), np.float32)
    labels = rng.integers(0, CLASSES, (count, CELLS, CELLS), np.uint8).repeat(16, 1).repeat(16, 2)
    return MemorySplit(maps=list(maps), labels=list(labels))


def against_faiss() -> dict[str, Any]:
    """Seconds of filling the memory and asking it, over IndexFlatIP on vectors that lie ready, all queries at once."""
    import faiss

    train, scored = pictures(TRAIN, 0), pictures(SCORED, 1)
    how = HummingbirdSettings(memory=MEMORY, engine="faiss")
    rng = np.random.default_rng(2)
    vectors = normalize_l2(rng.standard_normal((MEMORY, WIDTH), np.float32))
    soft = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, MEMORY)]
    memory = neighbours.Memory(vectors, soft)
    maps = [np.asarray(map_, np.float32).reshape(-1, WIDTH) for map_ in scored.maps]
    queries = normalize_l2(np.concatenate(maps))
    engines = {name: make(vectors, "cpu") for name, make in neighbours.ENGINES.items()}

    def bare() -> None:
        index = faiss.IndexFlatIP(WIDTH)
        index.add(vectors)
        index.search(queries, how.neighbours)

    def recall(name: str) -> None:
        for block in maps:
            neighbours.recall(block, memory, engines[name], how.neighbours, how.temperature)

    def whole() -> None:
        _neighbours.run(MemoryWork(scored, train=train, classes=CLASSES), how, 0)

    times = shortest(3, bare, lambda: recall("faiss"), lambda: recall("torch"), whole)
    named = dict(zip(("bare faiss", "recall, faiss", "recall, torch", "memory, recall and counts"), times, strict=True))
    ratios = {name: round(seconds / times[0], 2) for name, seconds in named.items() if name != "bare faiss"}
    return {"seconds": {name: round(seconds, 3) for name, seconds in named.items()}, "ratio to bare faiss": ratios}


def growth() -> dict[str, Any]:
    """Peak memory of `bench eval` from 20,000 to 200,000 remembered cells of 1.2 million, against what is added."""
    words = ["eval", "--method", "noise", "--set", "noise.width=256", "--set", "noise.stride=4", "--json"]
    words += ["--protocol", "hummingbird", "--set"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        lists = make_pictures(folder / "set", 302, (256, 256)) / "ImageSets/Segmentation"
        names = (lists / "val.txt").read_text().splitlines()
        (lists / "val.txt").write_text("\n".join(names[:2]) + "\n")
        (lists / "train.txt").write_text("\n".join(names[2:]) + "\n")
        runs = {}
        for size in (20_000, 200_000):
            chosen = [f"hummingbird.memory={size}", "--dataset", folder / "set"]
            runs[size] = child(*words, *chosen, folder=folder / f"out{size}")
    small, large = (runs[size]["rows"][0]["mean"]["memory_bytes"] for size in runs)
    peaks = [run["peak"] for run in runs.values()]
    return {
        "peak MB": {size: round(run["peak"] / 1e6) for size, run in runs.items()},
        "added memory MB": round((large - small) / 1e6),
        "growth over added memory": round((peaks[1] - peaks[0]) / (large - small), 2),
        "limit": GROWTH,
    }


def measure() -> dict[str, Any]:
    """Everything this script measures."""
    figures = {"against bare faiss": against_faiss()} if faiss_available() else {}
    return figures | {"memory from 20,000 to 200,000 vectors": growth()}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))  # noqa: T201
