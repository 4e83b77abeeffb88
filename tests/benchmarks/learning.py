"""What MaskContrast learns, on `shapes` and on photographs: the figures of results/maskcontrast.md.

    python tests/benchmarks/learning.py FOLDER [PHOTOGRAPHS]

FOLDER takes the data set, runs, rows and cache; what lies there is not done again. PHOTOGRAPHS holds `salient-photos/`
and `horses-mini/`, by default beside the checkout. Every figure stands beside the commands that made it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from run import ROOT, machine

from bench.producers.maskcontrast import SMALL
from bench.store import Store

SEEDS = (0, 1, 2)
_SEED = re.compile(r"(seed[= ]|(?:clean|shuffled|horses)-)\d")
EVAL = ("eval", "--dataset", "shapes", "--protocol", "kmeans:native")
TRUE = ("--set", "kmeans.foreground=masks:clean")
SALIENT_STEPS, ENDS = 150, 20
# `small` turns the hue at random, since colour tells nothing on `shapes`; on photographs it does: as the paper has it
HORSES = ("--steps", "300", "--set", "augment.size=128", "--set", "augment.hue=0.1", "--set", "augment.grey=0.2")

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "trained on clean masks": ("maskcontrast@runs/clean-{seed}", ()),
    "the same saliency head, random embeddings": (
        "maskcontrast@runs/clean-{seed}", ("--set", "maskcontrast.embedding=random")),
    "trained on the masks of other pictures": ("maskcontrast@runs/shuffled-{seed}", ()),
    "untrained (batch norm in eval mode)": (
        "maskcontrast@random", ("--set", "maskcontrast.arch=small", "--set", "checkpoint.seed={seed}")),
    "colour (pixels; mean colour of the object)": ("colour", ()),
}  # fmt: skip
TRAINED, FROZEN, SHUFFLED, UNTRAINED, _ = METHODS
CLAIMS = (
    (TRAINED, FROZEN, "predicted", 1.8, 12),
    (TRAINED, UNTRAINED, "predicted", 2.5, 15),
    (TRAINED, SHUFFLED, "predicted", 1.0, 10),
    (TRAINED, UNTRAINED, "true", 1.8, 15),
)
"""What is compared, on which foreground, and the least ratio and points."""


class Bench:
    """The command line, run in a folder; remembers what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("DATA", "CACHE", "RESULTS"):
            os.environ[f"DENSEBENCH_{name}"] = str((folder / name.lower()).resolve())

    def __call__(self, *words: str) -> str:
        self.said.append(shlex.join(["bench", *words]))
        done = subprocess.run(
            [sys.executable, "-m", "bench", *words], cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def train(self, name: str, *words: str) -> None:
        self("train", "maskcontrast", "--preset", "small", *words, "--output", f"runs/{name}", "--resume")

    def rows(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self(*words, "--json"))
        return found

    def commands(self) -> str:
        """What was run since the last call, S for the training seed."""
        lines, self.said = [_SEED.sub(r"\1S", line) for line in self.said], []
        text = "\n".join(dict.fromkeys(lines))
        return f"```\n{text}\n```"


def miou(bench: Bench, name: str, seed: int, foreground: str) -> float:
    """In percent, mean over the seeds of K-means."""
    method, options = METHODS[name]
    words = [word.format(seed=seed) for word in ("--method", method, *options)]
    (row,) = bench.rows(*EVAL, *words, *(TRUE if foreground == "true" else ()))
    return 100 * float(row["mean"]["scores"]["one_to_one_iou"]["miou"])


def shapes(bench: Bench) -> list[str]:
    for seed in SEEDS:
        same = ("--dataset", "shapes", "--masks", "clean", "--seed", str(seed))
        bench.train(f"clean-{seed}", *same)
        bench.train(f"shuffled-{seed}", *same, "--set", "masks.shuffle=true")
    figures = {
        (name, foreground): [miou(bench, name, seed, foreground) for seed in SEEDS]
        for name in METHODS
        for foreground in ("predicted", "true")
        if not (name == FROZEN and foreground == "true")
    }
    lines = ["| training seed | foreground | 0 | 1 | 2 | mean |", "|---|---|---|---|---|---|"]
    for (name, foreground), seeds in figures.items():
        lines.append(f"| {name} | {foreground} | {joined([*seeds, statistics.mean(seeds)])} |")
    lines += ["", "| against | foreground | ratio | at least | points | at least |", "|---|---|---|---|---|---|"]
    for ours, other, foreground, ratio, points in CLAIMS:
        high, low = (statistics.mean(figures[name, foreground]) for name in (ours, other))
        lines.append(f"| {other} | {foreground} | {high / low:.2f} | {ratio:g} | {high - low:.1f} | {points} |")
    return lines


def joined(figures: Sequence[float]) -> str:
    return " | ".join(f"{figure:.1f}" for figure in figures)


def salient(bench: Bench, photographs: Path) -> str:
    """The contrastive loss at both ends of a short run, once the queue holds nothing but real prototypes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--dataset", str(photographs / "salient-photos"), "--steps", str(SALIENT_STEPS))
    bench.train("salient", *words, "--set", "run.log_every=1")
    record = json.loads((bench.folder / "runs" / "salient" / "record.json").read_text())
    events = EventAccumulator(str(bench.folder / "runs" / "salient" / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("contrastive")}
    full = record["course"]["queue"] // record["course"]["batch"]
    first = statistics.mean(losses[step] for step in range(full + 1, full + 1 + ENDS))
    last = statistics.mean(losses[step] for step in range(SALIENT_STEPS - ENDS + 1, SALIENT_STEPS + 1))
    return f"Contrastive loss, mean of steps {full + 1} to {full + ENDS}: {first:.2f}; of the last {ENDS}: {last:.2f}."


def horses(bench: Bench, photographs: Path) -> str:
    """Mean over pictures of the IoU of the predicted foreground with the horse."""
    dataset = ("--dataset", str(photographs / "horses-mini"))
    found = []
    for seed in SEEDS:
        bench.train(f"horses-{seed}", *dataset, "--masks", "true", *HORSES, "--seed", str(seed))
        (row,) = bench.rows(
            "eval", "--method", f"maskcontrast@runs/horses-{seed}", "--protocol", "kmeans", *dataset, "--seeds", "1"
        )
        store = Store(Path(os.environ["DENSEBENCH_RESULTS"]))
        stored = store.find(row["key"])
        assert stored is not None
        pixels = np.zeros((row["run"]["dataset"]["pictures"], 2, 2))
        for picture, cluster, label, count in store.arrays(stored)["seed0_counts"]:
            if label < 2:  # what lies beyond is void
                pixels[picture, cluster, label] += count
        union = pixels.sum((1, 2)) - pixels[:, 0, 0]
        found.append(float((pixels[:, 1, 1] / union).mean()))
    shown = ", ".join(f"{iou:.3f}" for iou in found)
    return (
        f"Predicted foreground against the horse on the 30 pictures of val, mean over pictures of the IoU: {shown} "
        f"(training seeds 0, 1, 2; mean {statistics.mean(found):.3f}; at least 0.55; the best fixed centre box: 0.44)."
    )


def main() -> None:
    bench = Bench(Path(sys.argv[1]))
    photographs = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT.parent / "shared" / "data"
    facts = machine()
    parts = [
        "# What MaskContrast learns",
        f"Preset `small`, version {SMALL.version}, on {facts['cores']} cores ({facts['processor']}, torch "
        f"{facts['libraries']['torch']}), {date.today().isoformat()}, commit {str(facts['commit'])[:7]}; written by "
        "`python tests/benchmarks/learning.py FOLDER`. The commands are run in "
        "FOLDER; S stands for the training seed.",
        "## Shapes",
        "`kmeans:native` on objects, mIoU in percent (1-1 IoU) on val, mean over 5 seeds of K-means.",
        "\n".join(shapes(bench)),
        bench.commands(),
    ]
    if photographs.is_dir():
        photographs = photographs.resolve()
        parts += ["## Photographs", salient(bench, photographs), bench.commands()]
        parts += [horses(bench, photographs), bench.commands()]
    text = "\n\n".join(parts) + "\n"
    text = text.replace(str(photographs), "PHOTOGRAPHS")
    (ROOT / "results" / "maskcontrast.md").write_text(text)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
