"""What IIC's loss and its training step cost, as ratios of one run: python tests/benchmarks/iic.py

The loss beside the form its authors gave it, a convolution whose kernel is the other map. `forward` are the sums over
shifts alone, `both` the sums and their gradient at the maps; shifts of up to 10 pixels.

The step beside its network alone: both views forward, and backward from the head's maps. `step` is the whole step with
input, loss and optimizer, the loader not. Head B has 15 clusters, head A 45, as in the command for COCO-Stuff.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from bench.mutual import correlation
from bench.networks.iic import IICNetwork, network_input
from bench.producers._iic import HEADS, CropPairs, Learner
from bench.producers.iic import IICSettings

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


@dataclass(frozen=True)
class Step:
    """A step as a preset takes it. crops: a batch, pairs of views; side: of a crop in pixels."""

    width: int
    crops: int
    side: int


STEPS = {"small: width 16, 16 × 64²": Step(16, 16, 64), "paper: width 64, 2 × 128²": Step(64, 2, 128)}
"""`paper` has 60 crops a step: both the network and what is beside it grow with them."""


def network_of(case: Step) -> IICNetwork:
    torch.manual_seed(0)
    return IICNetwork({"head_A": 45, "head_B": 15}, width=case.width).to(memory_format=torch.channels_last)


def batch_of(case: Step, head: str) -> CropPairs:
    """Views of noise; the second of every other crop is mirrored."""
    generator = torch.Generator().manual_seed(0)
    size = (case.crops, 3, case.side, case.side)
    views = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(2)]
    return CropPairs(views[0], views[1], torch.arange(case.crops) % 2 == 0, HEADS.index(head))


def floor(case: Step, head: str) -> Callable[[], None]:
    network, batch = network_of(case), batch_of(case, head)
    inputs = [network_input(view).contiguous(memory_format=torch.channels_last) for view in (batch.first, batch.second)]
    gradient = torch.randn(case.crops, network.clusters[head], case.side, case.side) * 1e-3

    def work() -> None:
        network.zero_grad(set_to_none=True)
        torch.autograd.backward([network(view, [head])[head][0] for view in inputs], [gradient, gradient])

    return work


def whole(case: Step, head: str) -> Callable[[], None]:
    network, batch = network_of(case), batch_of(case, head)
    order: Any = SimpleNamespace(settings=IICSettings(reach=REACH), device="cpu", precision="fp32")
    learner, optimizer = Learner(network, order), torch.optim.Adam(network.parameters(), lr=1e-4)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        learner.step(batch)
        optimizer.step()

    return work


def step(case: Step, head: str) -> dict[str, float]:
    """Median seconds, and the median over rounds of the step's time over the network's of the same round."""
    works = [floor(case, head), whole(case, head)]
    rounds = [[clocked(work) for work in works] for _ in range(ROUNDS + 1)][1:]
    return {
        "network_s": statistics.median(network for network, _ in rounds),
        "step_s": statistics.median(step for _, step in rounds),
        "ratio_to_network": statistics.median(step / network for network, step in rounds),
    }


def clocked(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure() -> dict[str, Any]:
    return {
        "loss": {name: loss(*case) for name, case in CASES.items()},
        "step": {name: {head: step(case, head) for head in HEADS} for name, case in STEPS.items()},
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1, ensure_ascii=False))  # noqa: T201
