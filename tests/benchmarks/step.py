"""What MaskContrast's training step costs over its network alone, as ratios of one run: python tests/benchmarks/step.py

The floor is the query network's forward pass with gradients, the key network's without, and the query network's
backward pass from the two heads' outputs at feature resolution, all channels-last. `step` is the whole step with
losses, momentum update and optimizer, the loader not. `plain` is the same step written down as the paper's algorithm,
at the size of the input and all at once; `plain channels-last` the same in the faster memory format.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from bench.clock import peak_memory
from bench.contrast import MaskContrast, balanced_bce, enet_weights
from bench.networks.maskcontrast import Arch, MaskContrastNetwork

ROUNDS = 10
VARIANTS = ("floor", "step", "plain", "plain channels-last")


@dataclass(frozen=True)
class Case:
    arch: Arch
    batch: int
    side: int
    limit: float


CASES = {
    "ResNet-50, 4 × 224²": Case("resnet50", 4, 224, 1.10),
    "ResNet-18, 8 × 128²": Case("resnet18", 8, 128, 1.15),
}


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    """Two views and their masks: discs that cover a quarter to a half of the picture."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, case.batch, 3, case.side, case.side, generator=generator)
    place = torch.arange(case.side) - case.side / 2
    radius = torch.linspace(0.28, 0.4, 2 * case.batch).view(2, case.batch, 1, 1) * case.side
    masks = place.square()[:, None] + place.square() < radius.square()
    return images[0], masks[0], images[1], masks[1]


def model_of(case: Case, *, dropout: float = 0.5) -> MaskContrast:
    torch.manual_seed(0)
    return MaskContrast(MaskContrastNetwork(case.arch, dropout=dropout), queue=128)


def floor(case: Case) -> Callable[[], None]:
    model = model_of(case)
    images_q, _, images_k, _ = (
        value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value for value in inputs(case)
    )
    gradients: list[torch.Tensor] = []

    def work() -> None:
        model.zero_grad(set_to_none=True)
        maps = model.model_q(images_q)
        with torch.no_grad():
            model.model_k(images_k)
        outputs = [maps["embedding"], maps["saliency"]]
        if not gradients:
            gradients.extend(torch.randn_like(output) * 1e-3 for output in outputs)
        torch.autograd.backward(outputs, gradients)

    return work


def whole(case: Case) -> Callable[[], None]:
    model = model_of(case)
    given = inputs(case)
    optimizer = torch.optim.SGD(model.trainable(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def work() -> None:
        model.step(*given)
        optimizer.step()

    return work


def plain_loss(model: MaskContrast, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the paper's algorithm with the authors' weights, and the prototypes."""
    images_q, masks_q, images_k, masks_k = given
    embedding, saliency = model.model_q.upsampled(images_q)
    vectors = functional.normalize(embedding, dim=1)
    with torch.no_grad():
        for key, query in zip(model.model_k.parameters(), model.model_q.parameters(), strict=True):
            key.lerp_(query, 1 - model.momentum)
        keys = functional.normalize(model.model_k.upsampled(images_k)[0], dim=1)
        prototypes = functional.normalize((keys * masks_k[:, None]).sum((2, 3)), dim=1)
    rows = vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1])[masks_q.flatten()]
    pictures = torch.arange(len(masks_q))[:, None, None].expand_as(masks_q)[masks_q]
    logits = torch.cat([rows @ prototypes.T, rows @ model.queue.clone()], dim=1) / model.temperature
    weights = torch.zeros(logits.shape[1])
    weights[: len(masks_q)] = enet_weights(torch.bincount(pictures, minlength=len(masks_q)))
    loss = functional.cross_entropy(logits, pictures, weight=weights) + balanced_bce(saliency, masks_q)
    return loss, prototypes


def plain(case: Case, memory_format: torch.memory_format) -> Callable[[], None]:
    model = model_of(case).to(memory_format=memory_format)
    images_q, masks_q, images_k, masks_k = inputs(case)
    given = (
        images_q.contiguous(memory_format=memory_format),
        masks_q,
        images_k.contiguous(memory_format=memory_format),
        masks_k,
    )
    optimizer = torch.optim.SGD(model.trainable(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def work() -> None:
        loss, prototypes = plain_loss(model, *given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.queue[:, : len(prototypes)] = prototypes.T

    return work


def work_of(variant: str, case: Case) -> Callable[[], None]:
    if variant.startswith("plain"):
        return plain(case, torch.channels_last if variant.endswith("last") else torch.contiguous_format)
    return {"floor": floor, "step": whole}[variant](case)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def times(case: Case) -> dict[str, Any]:
    """Median seconds, and the median over rounds of each variant's time over the floor's of the same round."""
    works = {variant: work_of(variant, case) for variant in VARIANTS}
    for work in works.values():
        work()
    rounds = [{variant: seconds(work) for variant, work in works.items()} for _ in range(ROUNDS)]
    return {
        "seconds": {variant: statistics.median(turn[variant] for turn in rounds) for variant in VARIANTS},
        "ratio_to_floor": {
            variant: statistics.median(turn[variant] / turn["floor"] for turn in rounds) for variant in VARIANTS[1:]
        },
        "limit": case.limit,
    }


def memory(name: str) -> dict[str, Any]:
    """Peak resident memory of a process that takes three steps, beyond that of the floor, in MiB.

    Weights, gradients and the optimizer's momentum are counted as the network's own: the floor holds them too.
    """
    peaks = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "peak", variant, name]
        peaks[variant] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    beyond = {variant: peaks[variant] - peaks["floor"] for variant in VARIANTS[1:]}
    return {"peak_mib": peaks, "beyond_floor_mib": beyond, "ratio_to_plain": beyond["step"] / beyond["plain"]}


def peak(variant: str, case: Case) -> float:
    work = work_of(variant, case)
    # The floor has no optimizer: its momentum stands in as so much memory.
    held = [torch.ones_like(p) for p in MaskContrastNetwork(case.arch).parameters()] if variant == "floor" else []
    for _ in range(3):
        work()
    del held
    return peak_memory() / 2**20


def agreement(case: Case) -> dict[str, float]:
    """Relative differences from the plain step: of the loss, of the gradient as one vector, of the worst tensor's."""
    model = model_of(case, dropout=0.0)
    other = copy.deepcopy(model)
    given = inputs(case)
    result = model.step(*given)
    loss, _ = plain_loss(other, *given)
    loss.backward()
    pairs = [
        (seen.grad, wanted.grad)
        for seen, wanted in zip(model.trainable(), other.trainable(), strict=True)
        if seen.grad is not None and wanted.grad is not None
    ]
    apart = torch.stack([(seen - wanted).norm() for seen, wanted in pairs])
    long = torch.stack([wanted.norm() for _, wanted in pairs])
    return {
        "loss": abs(result.loss.item() / loss.item() - 1),
        "gradient": float(apart.norm() / long.norm()),
        "worst_tensor": float((apart / long).max()),
    }


def measure() -> dict[str, Any]:
    return {
        name: {**times(case), "memory": memory(name), "agreement": agreement(case), "load": os.getloadavg()[0]}
        for name, case in CASES.items()
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(peak(sys.argv[2], CASES[sys.argv[3]]))  # noqa: T201
    else:
        print(json.dumps(measure(), indent=1, ensure_ascii=False))  # noqa: T201
