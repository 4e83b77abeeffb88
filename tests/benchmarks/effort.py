"""How hard K-means has to try: effort against score, inertia and seconds, the figures of results/effort.md.

    python tests/benchmarks/effort.py FOLDER [SHARED]

FOLDER takes cache and rows; what lies there is not done again. SHARED holds `data/` and `weights/`, by default the one
beside the checkout. Every scheme clusters the same cached maps.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from learning import Bench
from run import ROOT, machine

WEIGHTS = "tf_efficientnet_lite0_imagenet.pth"
METHODS = {
    "EfficientNet-Lite0, ImageNet": f"timm:tf_efficientnet_lite0@SHARED/weights/{WEIGHTS}",
    "ResNet-18, random": "timm:resnet18@random",
    "colour": "colour",
}
PICTURES = {"voc-animals": 40, "camvid-mini": 12}
"""Data sets, and how many pictures of `val` are taken: ten full starts are what this costs."""

MORE = 50
"""K beside the number of classes, matched many to one."""

TEN = "10 full starts"
CHOSEN = "**the presets**"
FULL = {"candidates": 1, "sample": 0}
SCHEMES: Mapping[str, Mapping[str, int]] = {
    TEN: {"restarts": 10, "finished": 10, **FULL},
    "1 full start": {"restarts": 1, "finished": 1, **FULL},
    CHOSEN: {},
    "the same, the best 2 finished": {"finished": 2},
    "the same, 10 starts of one draw": {"restarts": 10, "candidates": 1},
}
"""Settings of K-means, where they are not those of the preset `native`."""


def rows_of(bench: Bench, shared: Path, dataset: str, settings: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rows of all methods at both K, by one command."""
    words = ["eval", "--dataset", str(shared / "data" / dataset), "--limit", str(PICTURES[dataset])]
    for method in METHODS.values():
        words += ["--method", method.replace("SHARED", str(shared))]
    words += ["--protocol", "kmeans", "--protocol", "overclustering", "--clusters", str(MORE)]
    for protocol in ("kmeans", "overclustering"):
        for key, value in settings.items():
            words += ["--set", f"{protocol}.{key}={value}"]
    return bench.rows(*words)


def lines(rows: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """One line per method, K and scheme; inertia and seconds against those of ten full starts."""
    yield "| method | K | effort | inertia, % above ten full starts | sd | mIoU | sd | seconds, share |"
    yield "|---|---|---|---|---|---|---|---|"
    for place, method in enumerate(name for name in METHODS for _ in range(2)):
        against = rows[TEN][place]
        for scheme, found in rows.items():
            row, mean = found[place], statistics.mean(inertias(against))
            above = 100 * (statistics.mean(inertias(row)) / mean - 1)
            sd = 100 * statistics.stdev(inertias(row)) / mean
            rule, metric = row["headline"]["rule"], row["headline"]["metric"]
            score, spread = (100 * row[part]["scores"][rule][metric] for part in ("mean", "std"))
            share = row["seconds"]["clusters"] / against["seconds"]["clusters"]
            k = row["run"]["settings"]["clusters"]
            yield f"| {method} | {k} | {scheme} | {above:+.3f} | {sd:.3f} | {score:.1f} | {spread:.1f} | {share:.2f} |"


def inertias(row: dict[str, Any]) -> list[float]:
    return [seed["inertia"] for seed in row["per_seed"]]


def main() -> None:
    bench = Bench(Path(sys.argv[1]))
    shared = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT.parent / "shared").resolve()
    facts = machine()
    parts = [
        "# How hard K-means tries",
        f"Five seeds each, preset `native`, on {facts['cores']} cores ({facts['processor']}), "
        f"{date.today().isoformat()}, commit {str(facts['commit'])[:7]}; written by `python "
        "tests/benchmarks/effort.py FOLDER`. Inertia is the mean over seeds, its sd of those same seeds; the score is "
        f"the headline (1-1 IoU at K = classes, n-1 IoU at K = {MORE}) in percent. Seconds are those of the clustering "
        "alone, as a share of ten full starts on the same vectors.",
    ]
    for dataset, pictures in PICTURES.items():
        rows = {name: rows_of(bench, shared, dataset, settings) for name, settings in SCHEMES.items()}
        parts += [f"## {dataset}, the first {pictures} pictures of val", "\n".join(lines(rows)), bench.commands()]
    text = "\n\n".join(parts).replace(str(shared), "../shared") + "\n"
    (ROOT / "results" / "effort.md").write_text(text)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
