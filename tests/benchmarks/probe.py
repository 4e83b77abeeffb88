"""What the linear probe costs beside its forward passes, as ratios measured in one run.

python tests/benchmarks/probe.py FOLDER     (a data set in VOC layout with a train and a val split)

`augmented`: one epoch of `linear:native` on `PICTURES` pictures with `supervised@random`, over the same number of bare
forward passes and bare heads (torch's interpolation and cross-entropy, a picture at a time), without scoring.
`twelve heads`: twelve learning rates in one pass, a head each, over the forward passes and 0.7 × 12 bare heads.
`the preset's rates`: the same epoch as `augmented` with the four rates of `native`, two heads each, and standardised
features, over that with one head on the features as they are (a ratio without a limit: what the choice costs).
`cached`: the time of 60 epochs without a cache over that of 60 epochs with one, the pass that fills it included; two
epochs of `KEPT` pictures are measured each way and the rest is extrapolated.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
import torch
from torch.nn import functional

PICTURES, KEPT, EPOCHS, WIDTH, STRIDE = 32, 20, 60, 2048, 8
RATES = [f"{rate:g}" for rate in np.geomspace(0.001, 1, 12).round(5)]
ONE_HEAD = ("linear.lr=0.1", "linear.normalize=none")


def bare_head(classes: int, size: tuple[int, int]) -> float:
    """Seconds of one step of one head on one picture: convolution, interpolation, cross-entropy, backward."""
    cells = tuple(-(-side // STRIDE) for side in size)
    features = torch.randn(1, WIDTH, *cells).to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (1, *size))
    head = torch.nn.Conv2d(WIDTH, classes, 1).to(memory_format=torch.channels_last)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        logits = functional.interpolate(head(features), size, mode="bilinear", align_corners=False)
        functional.cross_entropy(logits, labels, ignore_index=255).backward()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def bare_forward(dataset: Path, pictures: int) -> tuple[float, int, tuple[int, int]]:
    """Seconds of the network alone over pictures of the train split; the number of classes, and (H, W) of the first."""
    from bench import registry
    from bench.datasets import open_dataset
    from bench.features import Runtime, batches
    from bench.records import AdapterRequest, Checkpoint

    card = registry.card("methods", "supervised")
    request = AdapterRequest(card=card, checkpoint=Checkpoint(name="random", kind="random"), options=card.options())
    network = registry.load(card.factory)(request).eval().to(memory_format=torch.channels_last)
    opened = open_dataset(str(dataset))
    found = [opened.picture(name).transpose(2, 0, 1).copy() for name in opened.names("train")[:pictures]]
    indices = batches([(picture.shape[1:],) for picture in found], Runtime())
    stacked = [torch.from_numpy(np.stack([found[i] for i in batch])) for batch in indices]
    with torch.inference_mode():
        ready = [network.preprocess(batch).contiguous(memory_format=torch.channels_last) for batch in stacked]
        network(ready[0], ("layer4",))
        start = time.perf_counter()
        for batch in ready:
            network(batch, ("layer4",))
        return time.perf_counter() - start, len(opened.classes), found[0].shape[1:]


def training(dataset: Path, preset: str, pictures: int | None, epochs: int, *sets: str) -> dict[str, float]:
    """Seconds of phases of a probe in a process and cache of its own."""
    words: list[object] = ["eval", "--method", "supervised@random", "--protocol", f"linear:{preset}", "--json"]
    words += ["--dataset", dataset, "--set", f"linear.epochs={epochs}", "--set", "linear.val_every=0"]
    words += [word for text in sets for word in ("--set", text)]
    words += ["--limit", pictures] if pictures else []
    with tempfile.TemporaryDirectory() as text:
        run = pipeline.child(*words, folder=Path(text))
    return pipeline.phases(run["rows"])


def against_forward(dataset: Path) -> dict[str, Any]:
    before, classes, size = bare_forward(dataset, PICTURES)
    head = bare_head(classes, size)
    one = training(dataset, "native", PICTURES, 1, *ONE_HEAD)["train"]
    preset = training(dataset, "native", PICTURES, 1)["train"]
    # Where the scored split chooses, no setting has a second head on a part of the train split.
    rates = (f"linear.lr={','.join(RATES)}", "linear.choose_on=scored", "linear.normalize=none")
    twelve = training(dataset, "native", PICTURES, 1, *rates)["train"]
    after, _, _ = bare_forward(dataset, PICTURES)
    forward = (before + after) / 2
    return {
        "bare forward seconds, before and after": [round(before, 2), round(after, 2)],
        "bare head, seconds a picture": round(head, 4),
        "augmented": {"seconds": one, "ratio": round(one / (forward + PICTURES * head), 2), "limit": 1.2},
        "the preset's rates": {"seconds": preset, "ratio": round(preset / one, 2)},
        "twelve heads": {
            "seconds": twelve,
            "ratio": round(twelve / (forward + 0.7 * 12 * PICTURES * head), 2),
            "limit": 1.0,
        },
    }


def against_cache(dataset: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name, sets, limit in (("labels at their size", (), 5), ("labels on 100×100", ("linear.grid=100",), 10)):
        plain = ("linear.flip=0", "linear.rotate=0", "linear.zoom=1,1")
        without = training(dataset, "native", KEPT, 2, *ONE_HEAD, *plain, *sets)
        two, four = (training(dataset, "cached", KEPT, epochs, *ONE_HEAD, *sets) for epochs in (2, 4))
        epoch = max((four["train"] - two["train"]) / 2, 1e-3)
        fill = (two["forward"] + two.get("write cache", 0.0)) / 2  # the scored split, as large, is passed too
        report[name] = {
            "seconds an epoch without, with": [round(without["train"] / 2, 2), round(epoch, 2)],
            "seconds to fill the cache": round(fill, 2),
            "times faster": round(EPOCHS * without["train"] / 2 / (fill + EPOCHS * epoch), 1),
            "limit": limit,
        }
    return report


def measure(dataset: Path) -> dict[str, Any]:
    """Everything this script measures."""
    return {"pictures": dataset.name, **against_forward(dataset), "cached": against_cache(dataset)}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1])), indent=1))  # noqa: T201
