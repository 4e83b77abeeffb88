"""Co-Occurrence at work: fours of patches and the network put together and handed to the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bench.networks.iic import CooccurrenceNetwork, network_input
from bench.panels import grid
from bench.produce import Order

from ._crops import CropLearner, check_size, train_on_crops
from ._patches import Fours, FourSet, collate, cut, pairs
from .cooccurrence import CooccurrenceSettings

__all__ = ["run"]

_ROUNDS = 8
"""Crops of each unseen picture: 32 pictures give 1,024 pairs."""

_AT_ONCE = 32
_PANEL_ROWS = 4
_NEIGHBOURS, _OTHERS = (0, 255, 0), (255, 0, 0)


def run(order: Order) -> Path:
    """Train Co-Occurrence as ordered; returns the run's folder."""
    settings: CooccurrenceSettings = order.settings
    check_size(settings.augment, 4 * settings.side, "four times the side of a patch")
    return train_on_crops(
        order,
        build=lambda: CooccurrenceNetwork(
            settings.side, width=settings.width, branch=settings.branch, dropout=settings.dropout
        ),
        learner=Learner,
        samples_of=lambda pictures: FourSet(
            pictures, side=settings.side, neighbours=settings.neighbours, contrast=settings.contrast
        ),
        collate=collate,
        rounds=_ROUNDS,
    )


class Learner(CropLearner):
    """Binary cross entropy over the four pairs of each crop."""

    def __init__(self, network: CooccurrenceNetwork, order: Order) -> None:
        super().__init__(network, order)
        self._network: CooccurrenceNetwork = network
        self._cut = order.settings.cut

    def step(self, batch: Fours) -> Mapping[str, torch.Tensor]:
        logits, kinds = self._judged(batch)
        loss = functional.binary_cross_entropy_with_logits(logits, kinds.to(logits.dtype))
        self.backward(loss, divide=True)
        return {"loss": loss, "accuracy": _accuracy(logits, kinds)}

    def look(self, batch: Fours) -> dict[str, float]:
        """The share of pairs that are judged right."""
        with self.evaluating():
            parts = [
                self._judged(Fours(*(one[start : start + _AT_ONCE] for one in batch)))
                for start in range(0, len(batch.crops), _AT_ONCE)
            ]
        logits, kinds = (torch.cat(column) for column in zip(*parts, strict=True))
        return {"accuracy": float(_accuracy(logits, kinds))}

    def panel(self, batch: Fours) -> NDArray[np.uint8]:
        """Some of the batch's crops with the outlines of a and a' (b and b'), green where taken for neighbours."""
        some = Fours(*(one[:_PANEL_ROWS] for one in batch))
        with self.evaluating():
            logits, _ = self._judged(some)
        crops = some.crops.permute(0, 2, 3, 1).numpy().copy()
        for crop, corners, judged in zip(crops, some.corners.numpy(), logits.view(-1, 4).cpu().numpy(), strict=True):
            for place, (top, left) in enumerate(corners):
                _outline(crop[top : top + self._network.side, left : left + self._network.side], judged[place // 2] > 0)
        return grid([crops], crops.shape[1])

    def _judged(self, batch: Fours) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, float32 (4 · B,), and whether the pairs are neighbours, bool of the same shape."""
        crops, corners = (one.to(self.device, non_blocking=True) for one in batch)
        side = self._network.side
        with self.number_format():
            if self._cut == "map":
                patches = cut(self._network.penultimate(_input(crops)), corners, side)
            else:
                alone = cut(crops, corners, side).flatten(0, 1)
                maps = self._network.penultimate(_input(alone))
                patches = maps.view(*corners.shape[:2], *maps.shape[1:])
            first, second, kinds = pairs(patches)
            logits = self._network(first, second)
        return logits.to(torch.float32), kinds


def _input(pictures: torch.Tensor) -> torch.Tensor:
    return network_input(pictures).contiguous(memory_format=torch.channels_last)


def _accuracy(logits: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    return ((logits.detach() > 0) == kinds).to(torch.float32).mean()


def _outline(patch: NDArray[np.uint8], neighbours: bool) -> None:
    """Draw a frame of one pixel on a patch, uint8 (side, side, 3), in place."""
    for edge in (patch[0], patch[-1], patch[:, 0], patch[:, -1]):
        edge[:] = _NEIGHBOURS if neighbours else _OTHERS
