"""Linear heads on one or several maps: one product for all heads of a map, one fused loss, and what comes before.

Heads that are judged read vectors standardised by the statistics of the pictures they see, which are not those of all:
both are affine in each other, so that one product still serves all heads of a map.
"""

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
from ._measure import EpochLoss
from ._samples import Group

__all__ = ["Head", "Heads", "Moments", "Norm", "norms", "taps_of", "unit"]

_INIT = 5
"""What a generator is for: the first number of its key."""

_BN_MOMENTUM, _BN_EPSILON = 0.1, 1e-5
"""torch's defaults for batch norm."""

_CONSTANT = 1e-6
"""A dimension whose standard deviation is at most this part of its mean varies by what float32 rounds, a few units in
the last place: it is constant, and dividing by it would make features of the rounding."""


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
    """Linear heads on the maps of a method, and what is done to vectors before.

    held: pictures of the train split that heads which are judged do not see.
    """

    def __init__(
        self,
        work: Work,
        settings: LinearSettings,
        heads: Sequence[Head],
        seed: int,
        dtype: torch.dtype = torch.float32,
        *,
        held: Sequence[int] = (),
    ) -> None:
        self.work, self.settings, self.heads = work, settings, tuple(heads)
        self.device = torch.device(work.device)
        self.dtype = dtype
        self.held = frozenset(held)
        start = {which: self._begin(which, seed) for which in {head.which for head in heads}}
        self.weights = [nn.Parameter(start[head.which][0].clone()) for head in heads]
        self.biases = [nn.Parameter(start[head.which][1].clone()) for head in heads]
        self.norms = [norm.to(self.device) for norm in norms(work, settings, sorted(self.held))]
        self.failed_at = torch.full((len(heads),), -1, dtype=torch.int64, device=self.device)
        self.epoch = EpochLoss(len(heads), self.device)
        self.steps = 0

    def _begin(self, which: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Initial weights (C, D) and biases (C,) of every head of a map, however many heads there are.

        `uniform`: within ±1/√D, what torch's default for a convolution (Kaiming, a = √5) comes to for a kernel of 1×1.
        """
        shape = (self.work.classes, taps_of(self.work)[which].channels)
        rng, std = generator(_INIT, seed, which), self.settings.init_std
        if isinstance(std, float):
            weight, bias = rng.normal(0, std, shape), np.zeros(shape[0])
        else:
            bound = shape[1] ** -0.5
            weight, bias = rng.uniform(-bound, bound, shape), rng.uniform(-bound, bound, shape[0])
        return torch.from_numpy(weight).to(self.device, self.dtype), torch.from_numpy(bias).to(self.device, self.dtype)

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

    def losses(self, groups: Sequence[Group]) -> torch.Tensor:
        """Mean cross-entropy (heads,) over the labelled pixels of a batch; its gradients are left in `.grad`.

        The mean is over the pictures of all groups and processes.
        """
        features = self._features(groups)
        weights = [self._weights(group) for group in groups]
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
        self.epoch.add(losses, total)
        return losses

    def _weights(self, group: Group) -> torch.Tensor:
        """(heads, n): 0 where a picture is held out of a head."""
        out = torch.tensor([index in self.held for index in group.index], device=self.device)
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
        weights, biases = zip(*(self._as_read(number) for number in numbers), strict=True)
        logits = torch.addmm(torch.cat(biases), maps.reshape(-1, depth), torch.cat(weights).T)
        return logits.view(n, h, w, len(numbers), self.work.classes).permute(0, 3, 4, 1, 2)

    def _as_read(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a head for the vectors that all heads of its map are given."""
        head, weight, bias = self.heads[number], self.weights[number], self.biases[number]
        between = self.norms[head.which].between() if head.judged else None
        if between is None:
            return weight, bias
        mean, scale = (value.to(weight) for value in between)
        scaled = weight / scale
        return scaled, bias - scaled @ mean

    def scores(self, maps: Maps, numbers: Sequence[int]) -> Iterator[Scores]:
        """Class scores of every picture by the heads with these numbers, in order of their maps, as when stored."""
        wanted = sorted({self.heads[number].which for number in numbers})
        folded = {}
        for which in wanted:
            parts = [self.folded(number) for number in numbers if self.heads[number].which == which]
            folded[which] = [torch.cat(values) for values in zip(*parts, strict=True)]
        with torch.no_grad():
            for index, blocks in enumerate(maps.together()):
                found = []
                for which, (weight, bias) in folded.items():
                    vectors = torch.from_numpy(blocks[which]).to(self.device, self.dtype)
                    vectors = unit(vectors) if self.settings.normalize == "l2" else vectors
                    logits = torch.addmm(bias, vectors, weight.T).T
                    found.append((which, logits.reshape(-1, self.work.classes, *maps.grid(index, which))))
                yield found

    def in_order(self, numbers: Sequence[int]) -> list[int]:
        """The numbers in the order in which `scores` gives their heads."""
        return sorted(numbers, key=lambda number: (self.heads[number].which, numbers.index(number)))

    def folded(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (C, D) and bias (C,) of a head for vectors as the method gives them (of unit length with l2).

        The bias takes up what the weight has lost by rounding at the mean, where the vectors are.
        """
        head = self.heads[number]
        mean, scale = self.norms[head.which].shift(judged=head.judged)
        weight = (self.weights[number].detach() / scale).to(self.dtype)
        return weight, (self.biases[number].detach() - weight.double() @ mean).to(self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "weights": [weight.detach() for weight in self.weights],
            "biases": [bias.detach() for bias in self.biases],
            "norms": [norm.state() for norm in self.norms],
            "failed_at": self.failed_at,
            "epoch": self.epoch.state(),
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
            self.epoch.load(state["epoch"])
            self.steps = state["steps"]


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (…, D) of length 1; a vector of zeros stays one."""
    length_one: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return length_one


class Norm:
    """What is done to the vectors of a map before its heads."""

    def __init__(
        self, kind: str, mean: torch.Tensor, variance: torch.Tensor, seen: tuple[torch.Tensor, ...] = ()
    ) -> None:
        """mean, variance: float64 (D,), of the train split; those of batch norm begin at 0 and 1 and are learnt.

        seen: the same two of the pictures that heads which are judged see; empty: none are held out of them.
        """
        self.kind, self.mean, self.variance, self.seen = kind, mean, variance, seen
        self._batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def to(self, device: torch.device) -> Norm:
        self.mean, self.variance = self.mean.to(device), self.variance.to(device)
        self.seen = tuple(value.to(device) for value in self.seen)
        return self

    def look(self, groups: Sequence[torch.Tensor]) -> None:
        """Batch norm takes the statistics of a batch, over all groups and processes; a single vector has none."""
        if self.kind != "bn":
            return
        number = torch.tensor(
            float(sum(g[..., 0].numel() for g in groups)), dtype=torch.float64, device=self.mean.device
        )
        first = sum((g.sum((0, 1, 2), dtype=torch.float64) for g in groups), torch.zeros_like(self.mean))
        distributed.sum_([number, first])
        mean = first / number
        second = sum(
            ((g - mean.to(g)).square().sum((0, 1, 2), dtype=torch.float64) for g in groups), torch.zeros_like(mean)
        )
        distributed.sum_([second])
        self._batch = None
        if number > 1:
            self._batch = (mean, second / number)
            self.mean = torch.lerp(self.mean, mean, _BN_MOMENTUM)
            self.variance = torch.lerp(self.variance, second / (number - 1), _BN_MOMENTUM)

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (…, D) as the heads read them."""
        if self.kind == "none":
            return vectors
        if self.kind == "l2":
            return unit(vectors)
        mean, scale = (value.to(vectors) for value in self.shift())
        normal: torch.Tensor = (vectors - mean) / scale
        return normal

    def shift(self, *, judged: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted from a vector, and what it is then divided by, each float64 (D,)."""
        mean, variance = self._batch or (self.seen if judged and self.seen else (self.mean, self.variance))
        if self.kind in ("none", "l2"):
            return torch.zeros_like(mean), torch.ones_like(mean)
        if self.kind == "bn":
            return mean, (variance + _BN_EPSILON).sqrt()
        deviation = variance.sqrt()
        return mean, torch.where(deviation > _CONSTANT * mean.abs(), deviation, 1.0)

    def between(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What takes vectors that were standardised by all pictures to those by the pictures that are seen.

        To be subtracted, then divided by, each float64 (D,); None where these are the same.
        """
        if not self.seen:
            return None
        (mean, scale), (seen_mean, seen_scale) = self.shift(), self.shift(judged=True)
        return (seen_mean - mean) / scale, seen_scale / scale

    def settle(self) -> None:
        """From now on the statistics gathered over batches are used, not those of the last one."""
        self._batch = None

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "variance": self.variance}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Statistics that are learnt; the others are those of the train split, whose fingerprint the row has."""
        self.mean, self.variance = state["mean"].to(self.mean), state["variance"].to(self.variance)


def norms(work: Work, settings: LinearSettings, held: Sequence[int]) -> list[Norm]:
    """What is done to the vectors of each map. held: pictures that heads which are judged do not see."""
    depths = [tap.channels for tap in taps_of(work)]
    if settings.normalize != "standardize":
        return [Norm(settings.normalize, torch.zeros(depth).double(), torch.ones(depth).double()) for depth in depths]
    record = {"stage": "moments", "version": 2, "held": list(held), "fit": "train"}
    found = work.remember(record, lambda: _moments(work, held), keep=True)
    parts = ("all", "seen") if held else ("all",)
    made = []
    for which in range(len(depths)):
        of_map = [np.array(found[f"{name}_{part}{which}"]) for part in parts for name in ("mean", "variance")]
        mean, variance, *seen = map(torch.from_numpy, of_map)
        made.append(Norm("standardize", mean, variance, tuple(seen)))
    return made


def _moments(work: Work, held: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Mean and population variance of every dimension of every map, float64 (D,), over the plain train pictures.

    `mean_all0`, `variance_all0` of the first map over all pictures, `…_seen0` over those that are not held out.
    """
    every = [Moments(tap.channels) for tap in taps_of(work)]
    seen = [Moments(tap.channels) for tap in taps_of(work)]
    out = frozenset(held)
    for index, blocks in enumerate(work.maps("train").together()):
        for which, of_all in enumerate(every):
            of_picture = Moments.of(blocks[which])
            of_all.add(of_picture)
            if index not in out:
                seen[which].add(of_picture)
    found: dict[str, NDArray[Any]] = {}
    for part, kept in (("all", every), ("seen", seen)):
        for which, moments in enumerate(kept):
            found |= {f"mean_{part}{which}": moments.mean, f"variance_{part}{which}": moments.variance}
    return found


class Moments:
    """Mean and summed squared deviations of each dimension of streamed vectors, in float64.

    Merged picture by picture (Chan, Golub and LeVeque, 1979), so that nothing cancels and a constant has variance 0.
    """

    def __init__(self, dimensions: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(dimensions), np.zeros(dimensions)

    @classmethod
    def of(cls, block: NDArray[np.float32]) -> Moments:
        """Those of the vectors (n, D) of one picture. Deviations are from its first, so those of a constant are 0."""
        made = cls(block.shape[1])
        deviations = block.astype(np.float64) - block[0]
        middle = deviations.mean(0)
        made.count, made.mean = len(block), block[0] + middle
        made.squares = np.square(deviations - middle).sum(0)
        return made

    def add(self, other: Moments) -> None:
        """Take in the vectors whose moments these are."""
        total = self.count + other.count
        apart = other.mean - self.mean if self.count else np.zeros_like(self.mean)
        self.squares = self.squares + other.squares + np.square(apart) * (self.count * other.count / total)
        self.mean = self.mean + apart * (other.count / total) if self.count else other.mean
        self.count = total

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of the population."""
        variance: NDArray[np.float64] = self.squares / max(self.count, 1)
        return variance
