"""What IIC's loss costs beside the form its authors gave it, as ratios of one run: python tests/benchmarks/iic.py

Their form is a convolution whose kernel is the other map. `forward` are the sums over shifts alone, `both` the sums and
their gradient at the maps; shifts of up to 10 pixels.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from bench.mutual import correlation

REACH, ROUNDS = 10, 5
CASES = {"K=45, 8 × 64²": (8, 45, 64), "K=15, 8 × 64²": (8, 15, 64)}


def convolved(first: torch.Tensor, second: torch.Tensor, reach: int) -> torch.Tensor:
    return functional.conv2d(first.transpose(0, 1), second.transpose(0, 1), padding=reach).permute(2, 3, 0, 1)


def seconds(sums: Callable[..., torch.Tensor], maps: list[torch.Tensor]) -> tuple[float, float]:
    """Of the sums alone, and with their gradient."""
    start = time.perf_counter()
    joint = sums(*maps, REACH)
    forward = time.perf_counter() - start
    joint.backward(torch.ones_like(joint))
    return forward, time.perf_counter() - start


def loss(pictures: int, clusters: int, side: int) -> dict[str, Any]:
    """Median seconds, and the median over rounds of the authors' form's time over ours of the same round."""
    generator = torch.Generator().manual_seed(0)
    size = (pictures, clusters, side, side)
    maps = [torch.randn(size, generator=generator).softmax(1).requires_grad_() for _ in range(2)]
    rounds = [(seconds(correlation, maps), seconds(convolved, maps)) for _ in range(ROUNDS + 1)][1:]
    report: dict[str, Any] = {}
    for part, name in enumerate(("forward", "both")):
        report[f"{name}_s"] = {
            "ours": statistics.median(ours[part] for ours, _ in rounds),
            "convolution": statistics.median(theirs[part] for _, theirs in rounds),
        }
        report[f"{name}_speedup"] = statistics.median(theirs[part] / ours[part] for ours, theirs in rounds)
    return report


def measure() -> dict[str, Any]:
    return {"loss": {name: loss(*case) for name, case in CASES.items()}, "load": os.getloadavg()[0]}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1, ensure_ascii=False))  # noqa: T201
