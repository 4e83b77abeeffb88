"""IIC at work: crops, network and optimizer put together and handed to the training loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.augment import View, draw_jitter, view_picture
from bench.batches import Key, generator
from bench.errors import SettingError
from bench.images import voc_palette
from bench.mutual import Information, information_loss, unflipped
from bench.networks.iic import IICNetwork, network_input
from bench.panels import grid
from bench.produce import Order

from ._crops import CropLearner, PictureList, check_size, draw_box, train_on_crops
from .iic import IICSettings

__all__ = ["CropPairs", "PairSet", "run"]

log = logging.getLogger(__name__)

HEADS = ("head_B", "head_A")
"""Trained by turns, an epoch each, in this order (the released code, where --head_A_first is not given)."""

_PANEL_ROWS = 4


class CropPairs(NamedTuple):
    """A batch: uint8 (B, 3, S, S) views of the same crops, and which of the second are mirrored, bool (B,).

    epoch: that of the pictures, which decides whose turn it is.
    """

    first: torch.Tensor
    second: torch.Tensor
    flipped: torch.Tensor
    epoch: int

    @property
    def head(self) -> str:
        return HEADS[self.epoch % len(HEADS)]


class PairSet:
    """Pairs of views by key."""

    def __init__(self, pictures: PictureList) -> None:
        self._pictures = pictures

    def __call__(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bool, int]:
        """The crop, uint8 (S, S, 3), its second view, whether that is mirrored, and the epoch."""
        (epoch, index), crops = key, self._pictures.crops
        rng = generator(self._pictures.stream, self._pictures.seed, epoch, index)
        picture, side = self._pictures.read(index)
        box = draw_box(side, picture.shape, rng)
        second = View(box, jitter=draw_jitter(crops, rng), flip=bool(rng.random() < crops.flip))
        first, changed = (view_picture(view, picture, crops.size) for view in (View(box), second))
        return first, changed, second.flip, epoch


def collate(samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], bool, int]]) -> CropPairs:
    first, second, flipped, epochs = zip(*samples, strict=True)
    one, two = (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) for views in (first, second))
    return CropPairs(one, two, torch.tensor(flipped), epochs[0])


def run(order: Order) -> Path:
    """Train IIC as ordered; returns the run's folder."""
    settings: IICSettings = order.settings
    check_size(settings.augment, settings.reach + 1, "more than the reach of the shifts")
    clusters = _clusters(settings, order.dataset.classes)
    heads = {"head_A": settings.over * clusters, "head_B": clusters}
    log.info("%s", ", ".join(f"{number} clusters of {head}" for head, number in heads.items()))
    return train_on_crops(
        order,
        build=lambda: IICNetwork(heads, width=settings.width),
        learner=Learner,
        samples_of=PairSet,
        collate=collate,
    )


def _clusters(settings: IICSettings, classes: Sequence[str]) -> int:
    if not settings.clusters and not classes:
        raise SettingError("the data set has no classes to say how many clusters there are: --set clusters=K")
    return settings.clusters or len(classes)


class Learner(CropLearner):
    """One head by turns, on both views."""

    def __init__(self, network: IICNetwork, order: Order) -> None:
        super().__init__(network, order)
        self._network: IICNetwork = network
        self._settings: IICSettings = order.settings

    def step(self, batch: CropPairs) -> Mapping[str, torch.Tensor]:
        told = self._told(batch, batch.head)
        self.backward(told.loss, divide=False)  # the loss is that of the batch over all processes
        return {"loss": told.loss, "information": told.information}

    def look(self, batch: CropPairs) -> dict[str, float]:
        """The information, in nats, that each head's clusters hold."""
        with self.evaluating():
            told = {head: self._told(batch, head).information for head in HEADS}
        return {f"information of {head}": float(value) for head, value in told.items()}

    def panel(self, batch: CropPairs) -> NDArray[np.uint8]:
        """Some of the batch's crops, their second views, and the likeliest clusters of head B."""
        first, second = (view[:_PANEL_ROWS].permute(0, 2, 3, 1).numpy() for view in (batch.first, batch.second))
        with self.evaluating():
            clusters = self._maps(batch.first[:_PANEL_ROWS], HEADS[0]).argmax(1).cpu().numpy()
        return grid([first, second, voc_palette()[1 + clusters % 255]], first.shape[1])

    def _told(self, batch: CropPairs, head: str) -> Information:
        settings = self._settings
        return information_loss(
            self._maps(batch.first, head),
            unflipped(self._maps(batch.second, head), batch.flipped.to(self.device)),
            reach=settings.reach,
            weight=settings.weight_b if head == HEADS[0] else settings.weight_a,
            shifts=settings.shifts,
        )

    def _maps(self, views: torch.Tensor, head: str) -> torch.Tensor:
        """Probabilities, float32 (B, K, S, S), of uint8 views (B, 3, S, S)."""
        inputs = network_input(views.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
        with self.number_format():
            maps: torch.Tensor = self._network(inputs, [head])[head][0]
        return maps.to(torch.float32)
