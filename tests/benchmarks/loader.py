"""Whether MaskContrast's loader keeps up with its step, as a ratio of one run: python tests/benchmarks/loader.py

The loader decodes a picture of the usual size of PASCAL VOC and its mask, and makes two views of both. It has a worker
process for every core; the step, as in `step.py`, has all cores for itself while the loader rests.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from step import CASES, ROUNDS, Case, seconds, whole

from bench.augment import Augmentation
from bench.batches import Batches
from bench.datasets import FolderDataset
from bench.producers._pairs import PairSet, Pictures, loader
from bench.producers.maskcontrast import MaskSettings

PICTURES, SIZE = 64, (375, 500)
BATCHES = 33
LIMIT = 2.0


def make_pictures(root: Path) -> FolderDataset:
    """Coloured noise, coarse and fine, in JPEGs of about the length of VOC's (100 kB), with a disc for a mask."""
    rng = np.random.default_rng(0)
    height, width = SIZE
    for folder in ("JPEGImages", "saliency_disc", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"picture{index:03d}" for index in range(PICTURES)]
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize((width, height))
        picture = np.array(coarse) + rng.normal(0, 8, (height, width, 1))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
        down, right = np.mgrid[:height, :width]
        disc = np.hypot(down - height / 2, right - width / 2) < rng.uniform(0.25, 0.45) * height
        Image.fromarray(disc.astype(np.uint8) * 255).save(root / "saliency_disc" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    return FolderDataset(root)


def seconds_of_a_batch(pairs: PairSet, case: Case, workers: int) -> float:
    """Seconds from batch to batch once the workers run."""
    fetched = loader(pairs, Batches(PICTURES, case.batch, seed=0), range(BATCHES), workers=workers, pin=False)
    next(fetched)
    start = time.perf_counter()
    count = sum(1 for _ in fetched)
    return (time.perf_counter() - start) / count


def compare(pictures: Pictures, case: Case) -> dict[str, Any]:
    """Pictures/s of both, and the median over interleaved rounds of the loader's over the step's."""
    pairs = PairSet(pictures, Augmentation(size=case.side), MaskSettings(), seed=0)
    step, workers = whole(case), os.cpu_count() or 1
    step()
    rounds = [(seconds(step), seconds_of_a_batch(pairs, case, workers)) for _ in range(ROUNDS)]
    return {
        "pictures_per_second": {
            name: case.batch / statistics.median(column)
            for name, column in zip(("step", "loader"), zip(*rounds, strict=True), strict=True)
        },
        "ratio_to_step": statistics.median(eaten / made for eaten, made in rounds),
        "limit": LIMIT,
        "workers": workers,
        "load": os.getloadavg()[0],
    }


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_pictures(Path(folder) / "pictures")
        pictures = Pictures.find(dataset, "train", MaskSettings(), 0)
        return {name: compare(pictures, case) for name, case in CASES.items()}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1, ensure_ascii=False))  # noqa: T201
