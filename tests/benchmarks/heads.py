"""What the losses of many linear heads cost, as ratios measured in one run: python tests/benchmarks/heads.py

A bare head is torch's own: a 1×1 convolution of a map with 2,048 channels, bilinear interpolation to the labels,
cross-entropy, and the backward pass to the convolution's weights. `heads` are computed in one matrix product and one
`bench.dense.cross_entropy`. `loss` starts from the logits, `head` from the map. Two pictures, blocky labels, 5 % void.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bench.dense import argmax, axis, cross_entropy

PICTURES, WIDTH, VOID, STRIDE = 2, 2048, 255, 8


@dataclass(frozen=True)
class Case:
    classes: int
    cells: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.cells[0] * STRIDE, self.cells[1] * STRIDE


CASES = {"21 classes, 512×512": Case(21, (64, 64)), "11 classes, 360×480": Case(11, (45, 60))}
LIMITS = {"loss, 12 heads": 0.6, "loss, 1 head": 1.0, "head, 12 heads": 0.7}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shortest(repeats: int, works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The shortest time of each work, measured in turns after one that does not count."""
    turns = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats + 1)]
    return {name: min(turn[name] for turn in turns[1:]) for name in works}


class Example:
    """Labels of a case, and the losses of logits (B, heads, C, h, w) at their size."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        blocks = torch.randint(0, case.classes, (PICTURES, *case.cells), generator=generator, dtype=torch.uint8)
        self.labels = blocks.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
        self.labels[torch.rand(self.labels.shape, generator=generator) < 0.05] = VOID
        self.long = self.labels.long()
        self.axes = [axis(cells * STRIDE, cells * STRIDE, cells, STRIDE) for cells in case.cells]

    def bare(self, logits: torch.Tensor) -> None:
        upsampled = functional.interpolate(logits, size=self.case.size, mode="bilinear", align_corners=False)
        functional.cross_entropy(upsampled, self.long, ignore_index=VOID).backward()

    def heads(self, logits: torch.Tensor) -> None:
        weights = torch.ones(logits.shape[1], PICTURES)
        cross_entropy(logits, self.labels, self.axes[0], self.axes[1], weights).sum().backward()

    def predict_bare(self, logits: torch.Tensor) -> None:
        functional.interpolate(logits, size=self.case.size, mode="bilinear", align_corners=False).argmax(1)

    def predict_heads(self, logits: torch.Tensor) -> None:
        for picture in logits:
            argmax(picture, self.axes[0], self.axes[1])


def from_logits(example: Example) -> dict[str, Callable[[], None]]:
    one = torch.randn(PICTURES, example.case.classes, *example.case.cells, requires_grad=True)
    many = torch.randn(PICTURES, 12, example.case.classes, *example.case.cells, requires_grad=True)
    first = many.detach()[:, :1].clone().requires_grad_()
    # Gradients pile up in `grad`, for all alike: an addition at the size of the map.
    return {
        "bare": lambda: example.bare(one),
        "1": lambda: example.heads(first),
        "12": lambda: example.heads(many),
        "bare argmax": lambda: example.predict_bare(one.detach()),
        "12 argmax": lambda: example.predict_heads(many.detach()),
    }


def from_map(example: Example) -> dict[str, Callable[[], None]]:
    classes = example.case.classes
    given = torch.randn(PICTURES, WIDTH, *example.case.cells)
    last = given.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(12 * classes, WIDTH).mul(0.01).requires_grad_()
    convolution = torch.nn.Conv2d(WIDTH, classes, 1)
    convolution_last = torch.nn.Conv2d(WIDTH, classes, 1).to(memory_format=torch.channels_last)

    def heads() -> None:
        logits = last.permute(0, 2, 3, 1) @ weight.T
        example.heads(logits.unflatten(-1, (12, classes)).permute(0, 3, 4, 1, 2))

    def heads_first() -> None:
        logits = weight @ given.flatten(2)
        example.heads(logits.unflatten(1, (12, classes)).unflatten(-1, example.case.cells))

    return {
        "bare": lambda: example.bare(convolution(given)),
        "bare, channels-last": lambda: example.bare(convolution_last(last)),
        "12": heads_first,
        "12, channels-last": heads,
    }


def times(case: Case) -> dict[str, Any]:
    """Seconds per batch, and the ratio of `heads` in one pass to as many bare heads, the faster layout of each."""
    example = Example(case)
    loss, head = shortest(5, from_logits(example)), shortest(3, from_map(example))
    bare = min(head["bare"], head["bare, channels-last"])
    return {
        "loss": {
            "seconds": loss,
            "12 heads": loss["12"] / (12 * loss["bare"]),
            "1 head": loss["1"] / loss["bare"],
            "12 argmax": loss["12 argmax"] / (12 * loss["bare argmax"]),
        },
        "head": {"seconds": head, "12 heads": min(head["12"], head["12, channels-last"]) / (12 * bare)},
    }


def measure() -> dict[str, Any]:
    figures = {name: times(case) for name, case in CASES.items()}
    return {"limits": LIMITS, "threads": torch.get_num_threads(), "load": os.getloadavg()[0], **figures}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1, ensure_ascii=False))  # noqa: T201
