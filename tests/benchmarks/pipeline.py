"""What the protocols cost beside the bare forward passes, and how much memory they need.

python tests/benchmarks/pipeline.py FOLDER     (a data set in VOC layout, e.g. 30 pictures of 480×360)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLUSTERS = "21,50,100,200,500"


def child(*words: object, folder: Path) -> dict[str, Any]:
    """Run `bench` in a fresh process with its own cache and results; rows, seconds and peak memory (bytes)."""
    environment = os.environ | {"DENSEBENCH_CACHE": str(folder / "cache"), "DENSEBENCH_RESULTS": str(folder / "rows")}
    code = (
        "import sys, atexit\nfrom bench.clock import peak_memory\n"
        "atexit.register(lambda: sys.stderr.write('PEAK %d' % peak_memory()))\n"
        "from bench.cli import main\nmain()"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=environment, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    peak = int(done.stderr.rsplit("PEAK ", 1)[1])
    return {"rows": json.loads(done.stdout), "seconds": seconds, "peak": peak}


def bare_forward(dataset: Path) -> float:
    """Seconds of the network alone over the same pictures, decoded and normalised, as the harness runs it."""
    import torch

    from bench import registry
    from bench.datasets import open_dataset
    from bench.features import Runtime, batches
    from bench.records import AdapterRequest, Checkpoint

    card = registry.card("methods", "supervised")
    request = AdapterRequest(card=card, checkpoint=Checkpoint(name="random", kind="random"), options=card.options())
    network = registry.load(card.factory)(request).eval().to(memory_format=torch.channels_last)
    opened = open_dataset(str(dataset))
    pictures = [opened.picture(name).transpose(2, 0, 1).copy() for name in opened.names("val")]
    indices = batches([(picture.shape[1:],) for picture in pictures], Runtime())
    stacked = [torch.from_numpy(np.stack([pictures[i] for i in batch])) for batch in indices]
    with torch.inference_mode():
        ready = [network.preprocess(batch).contiguous(memory_format=torch.channels_last) for batch in stacked]
        network(ready[0], ("layer4",))
        start = time.perf_counter()
        for batch in ready:
            network(batch, ("layer4",))
        return time.perf_counter() - start


def phases(rows: list[dict[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for row in rows:
        for name, seconds in row["seconds"].items():
            total[name] = round(total.get(name, 0.0) + seconds, 2)
    return total


def against_forward(dataset: Path) -> dict[str, Any]:
    """Seconds inside the harness, all phases but building the network, over the bare forward passes."""
    common = ["eval", "--method", "supervised@random", "--dataset", dataset, "--protocol", "kmeans", "--json"]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before = bare_forward(dataset)
        kmeans = child(*common, folder=Path(one))
        both = child(*common, "--protocol", "overclustering", "--clusters", CLUSTERS, folder=Path(other))
        after = bare_forward(dataset)
    bare = (before + after) / 2
    report: dict[str, Any] = {"bare forward seconds, before and after": [round(before, 2), round(after, 2)]}
    for name, run in (("kmeans", kmeans), ("kmeans and overclustering", both)):
        work = sum(s for row in run["rows"] for phase, s in row["seconds"].items() if phase in _OUTER)
        report[name] = {
            "ratio": round(work / bare, 2),
            "seconds": round(work, 2),
            "whole process, seconds": round(run["seconds"], 2),
            "phases": phases(run["rows"]),
        }
    return report


_OUTER = ("fingerprint", "vectors", "clusters", "labels", "count", "score")
"""Phases that do not contain one another; `vectors` holds forward passes, cache and PCA."""


def make_pictures(root: Path, count: int, size: tuple[int, int], classes: int = 21) -> Path:
    """A data set in VOC layout of `count` random pictures (H, W) with blocky labels."""
    height, width = size
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"picture{index:05d}" for index in range(count)]
    for name in names:
        small = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(root / "JPEGImages" / f"{name}.jpg")
        cells = rng.integers(0, classes, (8, 8), np.uint8)
        mask = Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(f"class {index}" for index in range(classes)) + "\n")
    return root


def growth() -> dict[str, Any]:
    """Peak memory from 30 to 300 pictures of 256², 4,096 vectors each, against the reduced vectors that were added."""
    noise = ["--method", "noise", "--set", "noise.width=256", "--set", "noise.stride=4"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_pictures(folder / "set", 300, (256, 256))
        peaks = {}
        for count in (30, 300):
            words = ["eval", *noise, "--protocol", "kmeans", "--seeds", 1, "--json", "--limit", count, "--dataset"]
            peaks[count] = child(*words, folder / "set", folder=folder / f"out{count}")["peak"]
    added = 270 * 64 * 64 * 32 * 4
    return {
        "peak MB": {count: round(peak / 1e6) for count, peak in peaks.items()},
        "added vectors MB": round(added / 1e6),
        "growth over added vectors": round((peaks[300] - peaks[30]) / added, 2),
    }


def voc_sized() -> dict[str, Any]:
    """`noise` of width 64, preset paper, K = 21, one seed, 1,449 pictures of 512²: 5.9 million vectors."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_pictures(folder / "set", 1449, (512, 512))
        run = child(
            "eval",
            "--method",
            "noise",
            "--set",
            "noise.width=64",
            "--protocol",
            "kmeans:paper",
            "--set",
            "kmeans.clusters=21",
            "--seeds",
            1,
            "--json",
            "--dataset",
            folder / "set",
            folder=folder,
        )
    return {"peak MB": round(run["peak"] / 1e6), "seconds": round(run["seconds"], 1), "phases": phases(run["rows"])}


def ceiling(count: int = 1449) -> dict[str, Any]:
    """`oracle`, K = 21, five seeds, pictures of 375×500: 187,500 vectors each, which are labels: counts suffice.

    The ceiling must stay below 2 GB, and score exactly 1.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_pictures(folder / "set", count, (375, 500))
        words = ["eval", "--method", "oracle", "--protocol", "kmeans:native", "--json", "--dataset", folder / "set"]
        run = child(*words, folder=folder)
    (row,) = run["rows"]
    return {
        "pictures": count,
        "peak MB": round(run["peak"] / 1e6),
        "seconds": round(run["seconds"], 1),
        "phases": phases(run["rows"]),
        "miou": [scores["scores"]["one_to_one_iou"]["miou"] for scores in row["per_seed"]],
    }


def start_up() -> dict[str, float]:
    """CPU seconds of the commands people type to look around (median of 5)."""
    figures = {}
    for words in (["--help"], ["list", "methods"]):
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        figures["bench " + " ".join(words)] = round(float(np.median(times)), 3)
    return figures


def measure(dataset: Path) -> dict[str, Any]:
    """Everything this script measures, the data set's `val` split standing for real pictures."""
    return {
        "start-up, CPU seconds": start_up(),
        "against bare forward passes": {"pictures": dataset.name, **against_forward(dataset)},
        "memory from 30 to 300 pictures": growth(),
        "VOC-sized": voc_sized(),
        "ceiling of VOC size": ceiling(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1])), indent=1))  # noqa: T201
