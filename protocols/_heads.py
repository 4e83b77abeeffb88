"""Linear heads on one or several maps: one product for all heads of a map, one fused loss, and what comes before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import distributed
from bench.batches import generator
from bench.contracts import Maps, Scores, Work
from bench.dense import axis, cells_of, cross_entropy, weighted_pixels
from bench.records import Tap

from ._linear import LinearSettings
from ._samples import Group

__all__ = ["Head", "Heads", "Norm", "taps_of"]

_INIT = 5
"""What a generator is for: the first number of its key."""

_BN_MOMENTUM, _BN_EPSILON = 0.1, 1e-5
"""torch's defaults for batch norm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One classifier of one map. which: number of the map. judged: trained without the held-out pictures."""

    which: int
    tap: str
    lr: float
    weight_decay: float
    judged: bool = False

    def text(self, varied: Sequence[str]) -> str:
        """The settings that were varied, as they are typed."""
        return " ".join(f"{name}={getattr(self, name):g}" if name != "tap" else f"tap={self.tap}" for name in varied)


def _touching(maps: torch.Tensor, tap: Tap, extent: tuple[int, int]) -> torch.Tensor:
    """Maps (n, h, w, D) without the cells that lie wholly in what was padded, as `Maps` are."""
    if tap.frame == "label":
        return maps
    rows, columns = (
        cells_of(side, cells, tap.stride, tap.offset) for side, cells in zip(extent, maps.shape[1:3], strict=True)
    )
    return maps[:, :rows, :columns]


def taps_of(work: Work) -> list[Tap]:
    """Facts of the maps that are read."""
    return [work.network.taps[name] for name in work.taps]


class Heads:
    """Linear heads on the maps of a method, and what is done to vectors before."""

    def __init__(
        self, work: Work, settings: LinearSettings, heads: Sequence[Head], seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.work, self.settings, self.heads = work, settings, tuple(heads)
        self.device = torch.device(work.device)
        self.dtype = dtype
        start = {which: self._begin(which, seed) for which in {head.which for head in heads}}
        self.weights = [nn.Parameter(start[head.which].clone()) for head in heads]
        self.biases = [nn.Parameter(torch.zeros(work.classes, dtype=dtype, device=self.device)) for _ in heads]
        self.norms = [Norm.of(work, settings, which).to(self.device, dtype) for which in range(len(work.taps))]
        self.failed_at = torch.full((len(heads),), -1, dtype=torch.int64, device=self.device)
        self.steps = 0

    def _begin(self, which: int, seed: int) -> torch.Tensor:
        """Initial weights (C, D) of every head of a map: they do not depend on how many heads there are."""
        shape = (self.work.classes, taps_of(self.work)[which].channels)
        values = generator(_INIT, seed, which).normal(0, self.settings.init_std, shape)
        return torch.from_numpy(values).to(self.device, self.dtype)

    def optimizer(self, momentum: float) -> torch.optim.Optimizer:
        """SGD with a rate and a decay for each head."""
        groups = [
            {"params": [weight, bias], "lr": head.lr, "weight_decay": head.weight_decay}
            for head, weight, bias in zip(self.heads, self.weights, self.biases, strict=True)
        ]
        return torch.optim.SGD(groups, lr=self.heads[0].lr, momentum=momentum)

    def of_tap(self, which: int) -> list[int]:
        """Numbers of the heads that read a map."""
        return [number for number, head in enumerate(self.heads) if head.which == which]

    def losses(self, groups: Sequence[Group], held: frozenset[int]) -> torch.Tensor:
        """Mean cross-entropy (heads,) over the labelled pixels of a batch; its gradients are left in `.grad`.

        The mean is over the pictures of all groups and processes. held: samples that heads which are judged do not see.
        """
        features = self._features(groups)
        weights = [self._weights(group, held) for group in groups]
        total = torch.zeros(len(self.heads), dtype=torch.float64, device=self.device)
        for group, weight in zip(groups, weights, strict=True):
            total += weighted_pixels(group.labels, weight)
        distributed.sum_([total])
        losses = torch.zeros(len(self.heads), dtype=self.dtype, device=self.device)
        for which in {head.which for head in self.heads}:
            numbers = self.of_tap(which)
            for group, maps, weight in zip(groups, features[which], weights, strict=True):
                logits = self._logits(maps, numbers)
                pixels = group.labels.shape[1:]
                tap = taps_of(self.work)[which]
                frame = group.whole.shape[1:] if tap.frame == "label" and group.whole is not None else group.extent
                rows, columns = (
                    axis(side, extent, cells, tap.stride, tap.offset)
                    for side, extent, cells in zip(pixels, frame, maps.shape[1:3], strict=True)
                )
                found = cross_entropy(logits, group.labels, rows, columns, weight[numbers], total[numbers])
                if found.requires_grad:
                    found.sum().backward()  # type: ignore[no-untyped-call]
                losses[numbers] += found.detach()
        distributed.sum_([losses, *(p.grad for p in (*self.weights, *self.biases) if p.grad is not None)])
        return losses

    def _weights(self, group: Group, held: frozenset[int]) -> torch.Tensor:
        """(heads, n): 0 where a picture is held out of a head."""
        out = torch.tensor([index in held for index in group.index], device=self.device)
        judged = torch.tensor([head.judged for head in self.heads], device=self.device)
        return (~(judged[:, None] & out[None, :])).to(torch.float64)

    def _features(self, groups: Sequence[Group]) -> list[list[torch.Tensor]]:
        """Per map and group the vectors (n, h, w, D) as the heads read them, without gradient."""
        with torch.no_grad():
            raw = [group.maps or self._computed(group) for group in groups]
            per_tap: list[list[torch.Tensor]] = []
            for which, norm in enumerate(self.norms):
                found = [maps[which].to(self.device, self.dtype) for maps in raw]
                norm.look(found)
                per_tap.append([norm(maps) for maps in found])
        return per_tap

    def _computed(self, group: Group) -> tuple[torch.Tensor, ...]:
        assert group.pictures is not None
        found = self.work.forward(group.pictures, group.whole)
        return tuple(_touching(maps, tap, group.extent) for maps, tap in zip(found, taps_of(self.work), strict=True))

    def _logits(self, maps: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        """(n, heads, C, h, w) of the heads with these numbers, from (n, h, w, D): one product for all of them."""
        n, h, w, depth = maps.shape
        weight = torch.cat([self.weights[number] for number in numbers])
        bias = torch.cat([self.biases[number] for number in numbers])
        logits = torch.addmm(bias, maps.reshape(-1, depth), weight.T)
        return logits.view(n, h, w, len(numbers), self.work.classes).permute(0, 3, 4, 1, 2)

    def scores(self, maps: Maps, numbers: Sequence[int]) -> Iterator[Scores]:
        """Class scores of every picture by the heads with these numbers, in order of their maps."""
        wanted = sorted({self.heads[number].which for number in numbers})
        with torch.no_grad():
            for index, blocks in enumerate(maps.together()):
                found = []
                for which in wanted:
                    block = torch.from_numpy(blocks[which]).to(self.device, self.dtype)
                    vectors = self.norms[which](block.view(1, *maps.grid(index, which), -1))
                    mine = [number for number in numbers if self.heads[number].which == which]
                    found.append((which, self._logits(vectors, mine)[0]))
                yield found

    def in_order(self, numbers: Sequence[int]) -> list[int]:
        """The numbers in the order in which `scores` gives their heads."""
        return sorted(numbers, key=lambda number: (self.heads[number].which, numbers.index(number)))

    def folded(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (C, D) and bias (C,) of a head for vectors as the method gives them (of unit length with l2)."""
        mean, scale = self.norms[self.heads[number].which].shift()
        weight = self.weights[number].detach() / scale
        return weight, self.biases[number].detach() - weight @ mean

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "weights": [weight.detach() for weight in self.weights],
            "biases": [bias.detach() for bias in self.biases],
            "norms": [norm.state() for norm in self.norms],
            "failed_at": self.failed_at,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for mine, stored in ((self.weights, state["weights"]), (self.biases, state["biases"])):
                for parameter, value in zip(mine, stored, strict=True):
                    parameter.copy_(value)
            for norm, stored in zip(self.norms, state["norms"], strict=True):
                norm.load(stored)
            self.failed_at.copy_(state["failed_at"])
            self.steps = state["steps"]


class Norm:
    """What is done to the vectors of a map before its heads."""

    def __init__(self, kind: str, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """mean, variance: (D,), of the train split; those of batch norm begin at 0 and 1 and are learnt."""
        self.kind, self.mean, self.variance = kind, mean, variance
        self._batch: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def of(cls, work: Work, settings: LinearSettings, which: int) -> Norm:
        depth = taps_of(work)[which].channels
        if settings.normalize != "standardize":
            return cls(settings.normalize, torch.zeros(depth), torch.ones(depth))
        found = work.remember(
            {"stage": "moments", "which": which, "fit": "train"}, lambda: _moments(work, which), keep=True
        )
        return cls("standardize", torch.from_numpy(found["mean"]), torch.from_numpy(found["variance"]))

    def to(self, device: torch.device, dtype: torch.dtype) -> Norm:
        self.mean, self.variance = self.mean.to(device, dtype), self.variance.to(device, dtype)
        return self

    def look(self, groups: Sequence[torch.Tensor]) -> None:
        """Batch norm takes the statistics of a batch, over all groups and processes; a single vector has none."""
        if self.kind != "bn":
            return
        number = torch.tensor(
            float(sum(g[..., 0].numel() for g in groups)), dtype=torch.float64, device=self.mean.device
        )
        first = sum(
            (g.sum((0, 1, 2), dtype=torch.float64) for g in groups), torch.zeros_like(self.mean, dtype=torch.float64)
        )
        distributed.sum_([number, first])
        mean = first / number
        second = sum(
            ((g - mean.to(g)).square().sum((0, 1, 2), dtype=torch.float64) for g in groups), torch.zeros_like(mean)
        )
        distributed.sum_([second])
        self._batch = None
        if number > 1:
            variance = second / number
            self._batch = (mean.to(self.mean), variance.to(self.mean))
            self.mean = torch.lerp(self.mean, self._batch[0], _BN_MOMENTUM)
            self.variance = torch.lerp(self.variance, (second / (number - 1)).to(self.mean), _BN_MOMENTUM)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (…, D) as the heads read them."""
        if self.kind == "none":
            return vectors
        if self.kind == "l2":
            unit: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            return unit
        mean, scale = self.shift()
        normal: torch.Tensor = (vectors - mean) / scale
        return normal

    def shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from a vector, and what it is then divided by, each (D,)."""
        mean, variance = self._batch or (self.mean, self.variance)
        if self.kind in ("none", "l2"):
            return torch.zeros_like(mean), torch.ones_like(mean)
        if self.kind == "bn":
            return mean, (variance + _BN_EPSILON).sqrt()
        return mean, torch.where(variance > 0, variance, 1).sqrt()

    def settle(self) -> None:
        """From now on the statistics gathered over batches are used, not those of the last one."""
        self._batch = None

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "variance": self.variance}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        self.mean, self.variance = state["mean"].to(self.mean), state["variance"].to(self.variance)


def _moments(work: Work, which: int) -> dict[str, NDArray[Any]]:
    """Mean and population variance of every dimension over the plain pictures of the train split, float64 (D,)."""
    count, shift, first, second = 0, np.zeros(0), np.zeros(0), np.zeros(0)
    for blocks in work.maps("train").together():
        block = blocks[which].astype(np.float64)
        if not count:
            shift = block.mean(0)
            first, second = np.zeros_like(shift), np.zeros_like(shift)
        count += len(block)
        first += (block - shift).sum(0)
        second += np.square(block - shift).sum(0)
    return {"mean": shift + first / count, "variance": np.maximum(second / count - np.square(first / count), 0)}
