"""Training on square crops of scaled pictures: what IIC and Co-Occurrence share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import distributed
from bench.batches import Batches, Key, batch_size, fetch
from bench.datasets import FolderDataset
from bench.errors import SettingError
from bench.journal import require_wandb
from bench.produce import Order
from bench.trainer import poly
from bench.weights import seeded

from ._course import facts_of, split_of, sum_up, travel
from ._settings import CropSettings

__all__ = ["TRAINED", "UNSEEN", "CropLearner", "PictureList", "Samples", "check_size", "draw_box", "train_on_crops"]

log = logging.getLogger(__name__)

TRAINED, UNSEEN = 4, 5
"""What a generator is for: the first number of its key (see `bench.batches`)."""

_UNSEEN_PICTURES = 32

Samples = Callable[[Key], Any]
"""Makes the sample of a key."""


@dataclass(frozen=True, slots=True)
class PictureList:
    """Some pictures of a data set, and how crops are made of them.

    stream, seed: what the chance in a crop belongs to, beside its key.
    """

    dataset: FolderDataset
    names: tuple[str, ...]
    crops: CropSettings
    seed: int
    stream: int = TRAINED

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """A picture, uint8 RGB (H, W, 3), with zeros around it where it is smaller than a crop, and a crop's side."""
        picture = self.dataset.picture(self.names[index])
        size, scale = self.crops.size, self.crops.scale
        side = min(picture.shape[:2]) if scale == "fit" else max(round(size / scale), 1)
        missing = [max(side - length, 0) for length in picture.shape[:2]]
        if any(missing):
            picture = np.pad(picture, [*((gap // 2, gap - gap // 2) for gap in missing), (0, 0)])
        return picture, side


def draw_box(side: int, size: Sequence[int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square of `side` pixels somewhere in a picture of (H, W), both at least `side` (see `bench.augment.View`)."""
    top, left = (int(rng.integers(length - side + 1)) for length in size[:2])
    return left, top, side, side


def check_size(crops: CropSettings, least: int, why: str) -> None:
    """SettingError for crops whose side is odd or below `least`, the side that something needs."""
    if crops.size % 2 or crops.size < least:
        raise SettingError(
            f"augment.size={crops.size} does not fit: expected an even number of at least {least}, {why}"
        )


class CropLearner(ABC):
    """A network on a device as the training loop knows it, whose gradients are left in `.grad` by `step`."""

    def __init__(self, network: nn.Module, order: Order) -> None:
        self._whole, self.device = network, torch.device(order.device)
        self._autocast = torch.bfloat16 if order.precision == "bf16" else None

    @abstractmethod
    def step(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """See `bench.trainer.Learner`."""

    @abstractmethod
    def look(self, batch: Any) -> Mapping[str, float]:
        """Figures of a batch of unseen crops, the same on every process, in eval mode."""

    @abstractmethod
    def panel(self, batch: Any) -> NDArray[np.uint8]:
        """See `bench.producers._course.Learner`."""

    def synchronise(self) -> None:
        distributed.broadcast_([tensor.detach() for tensor in self._whole.state_dict().values()])

    def state_dict(self) -> Mapping[str, Any]:
        return self._whole.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        return self._whole.load_state_dict(state, strict=True)

    def number_format(self) -> torch.autocast:
        """That of the network's passes."""
        return torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradients."""
        self._whole.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._whole.train()

    def backward(self, loss: torch.Tensor, *, divide: bool) -> None:
        """The gradients of a loss, summed over processes, or their mean; batch norms begin a step alike on all."""
        torch.autograd.backward(loss)
        moved = [parameter.grad for parameter in self._whole.parameters() if parameter.grad is not None]
        distributed.sum_(moved, divide=divide)
        distributed.broadcast_(self._whole.buffers())


def train_on_crops(
    order: Order,
    *,
    build: Callable[[], Any],
    learner: Callable[[Any, Order], CropLearner],
    samples_of: Callable[[PictureList], Samples],
    collate: Callable[[Sequence[Any]], Any],
    rounds: int = 1,
) -> Path:
    """Train a network by Adam as ordered; returns the run's folder.

    build: the network, which describes itself (`describe`), with torch's chance seeded. learner: what trains it, once
    it is on the device. samples_of: the samples of some pictures. collate: a batch of samples.
    rounds: how many samples of every unseen picture are looked at, as one batch.
    """
    settings = order.settings
    if order.wandb:
        require_wandb()
    split = split_of(order)
    pictures = PictureList(order.dataset, order.dataset.names(split), settings.augment, order.seed)
    batches = Batches(len(pictures), batch_size(settings.batch, len(pictures), distributed.world()), order.seed)
    steps = settings.steps or settings.epochs * batches.per_epoch
    with seeded(order.seed):
        network = build()
    log.info(
        "%d pictures of the split %s, %d steps of %d crops, %d workers",
        len(pictures), split, steps, batches.batch, order.workers,
    )  # fmt: skip
    folder, record = order.open({
        "data": facts_of(order.dataset, split, pictures.names), "architecture": network.describe(),
        "course": {"steps": steps, "batch": batches.batch, "steps_per_epoch": batches.per_epoch},
    })  # fmt: skip
    log.info("run folder: %s", folder.path)
    network.to(order.device).to(memory_format=torch.channels_last)
    learns = learner(network, order)
    make, pin = samples_of(pictures), order.device.startswith("cuda")
    unseen = [samples_of(one)((n, i)) for one in _unseen(order, split) for n in range(rounds) for i in range(len(one))]
    looked = collate(unseen) if unseen else None
    report = travel(
        order,
        folder,
        record,
        learns,
        torch.optim.Adam(network.parameters(), lr=settings.lr),
        batches=batches,
        schedule=poly(steps, settings.power),
        fetch=lambda steps: fetch(make, batches, steps, collate=collate, workers=order.workers, pin=pin),
        held_out=(lambda: learns.look(looked)) if unseen else None,
    )
    sum_up(order, folder, steps, report)
    return folder.path


def _unseen(order: Order, split: str) -> list[PictureList]:
    """The first pictures of the split that is scored, where that is not the one that is trained on."""
    scored = order.dataset.eval_split
    if scored == split:
        return []
    names = order.dataset.names(scored)[:_UNSEEN_PICTURES]
    return [PictureList(order.dataset, names, order.settings.augment, order.seed, UNSEEN)]
