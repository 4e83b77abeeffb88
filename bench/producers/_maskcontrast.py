"""MaskContrast at work: pictures, network and optimizer put together and handed to the training loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench import distributed
from bench.backbone import IMAGENET_MEAN, IMAGENET_STD
from bench.batches import Batches, batch_size
from bench.contrast import MaskContrast, check_queue
from bench.journal import require_wandb
from bench.networks.maskcontrast import MaskContrastNetwork
from bench.panels import panel
from bench.produce import Order, init_body
from bench.runs import RunFolder
from bench.trainer import Report, Schedule, poly
from bench.weights import seeded

from ._course import split_of, sum_up, travel
from ._export import check_reference, export_reference
from ._pairs import Pairs, PairSet, Pictures, loader
from .maskcontrast import MaskContrastSettings

__all__ = ["run"]

log = logging.getLogger(__name__)

_PANEL_ROWS = 4


def run(order: Order) -> Path:
    """Train MaskContrast as ordered; returns the run's folder."""
    settings: MaskContrastSettings = order.settings
    if order.wandb:
        require_wandb()
    if order.export:
        check_reference(settings)
    split = split_of(order)
    pictures = Pictures.find(order.dataset, split, settings.masks, order.seed)
    count = len(pictures.names)
    batches = Batches(count, batch_size(settings.batch, count, distributed.world()), order.seed)
    steps = settings.steps or settings.epochs * batches.per_epoch
    queue = _queue(settings, batches)
    model, init = _begin(settings, queue, order.seed)
    log.info(
        "%d pictures of the split %s with masks %s, %s from %s, %d steps of %d pictures, %d workers",
        count,
        split,
        pictures.mask_set,
        settings.arch,
        settings.init,
        steps,
        batches.batch,
        order.workers,
    )
    folder, record = order.open({
        "data": pictures.facts, "init": init, "architecture": model.model_q.describe(),
        "course": {"steps": steps, "batch": batches.batch, "queue": queue, "steps_per_epoch": batches.per_epoch},
    })  # fmt: skip
    log.info("run folder: %s", folder.path)
    report = _train(order, model, pictures, batches, folder, record)
    if order.export and not distributed.rank():
        target = folder.path / "reference.pth.tar"
        export_reference(folder.checkpoints / f"step-{steps}.pt", target, batches.per_epoch)
        log.info("for the reference code: %s", target)
    sum_up(order, folder, steps, report)
    return folder.path


def _train(
    order: Order,
    model: MaskContrast,
    pictures: Pictures,
    batches: Batches,
    folder: RunFolder,
    record: Mapping[str, Any],
) -> Report | None:
    settings: MaskContrastSettings = order.settings
    model.to(order.device)
    optimizer = _optimizer(model, settings)
    pairs = PairSet(pictures, settings.augment, settings.masks, order.seed)
    pin = order.device.startswith("cuda")
    return travel(
        order,
        folder,
        record,
        _Learner(model, order),
        optimizer,
        batches=batches,
        schedule=_schedule(settings, record["course"]["steps"], batches.per_epoch),
        fetch=lambda steps: loader(pairs, batches, steps, workers=order.workers, pin=pin),
    )


def _begin(settings: MaskContrastSettings, queue: int, seed: int) -> tuple[MaskContrast, dict[str, Any]]:
    """The two networks and the queue before the first step, and what the record says of the body's weights."""
    with seeded(seed):
        network = MaskContrastNetwork(settings.arch, dim=settings.dim)
        init = init_body(settings.init, network.backbone, seed)
        model = MaskContrast(
            network,
            queue=queue,
            temperature=settings.temperature,
            momentum=settings.key_momentum,
            class_weights=settings.class_weights,
            saliency_loss=settings.saliency_loss,
            negatives=settings.negatives,
            resolution=settings.resolution,
            frozen=settings.freeze,
        )
    return model, init


def _queue(settings: MaskContrastSettings, batches: Batches) -> int:
    """The length of the queue; where a small train set cut the batch, as many whole batches as fit."""
    if batches.batch == settings.batch:
        check_queue(settings.queue, batches.batch)
        return settings.queue
    queue = max(settings.queue // batches.batch, 1) * batches.batch
    if queue != settings.queue:
        log.info("the queue holds %d prototypes, not %d: whole batches of %d", queue, settings.queue, batches.batch)
    return queue


def _optimizer(model: MaskContrast, settings: MaskContrastSettings) -> torch.optim.Optimizer:
    parameters = model.trainable()
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _schedule(settings: MaskContrastSettings, steps: int, per_epoch: int) -> Schedule:
    hold = per_epoch if settings.decay == "epoch" else 1
    return poly(steps, settings.power, warmup=settings.warmup, hold=hold)


class _Learner:
    """MaskContrast as the training loop knows it."""

    def __init__(self, model: MaskContrast, order: Order) -> None:
        self._model, self._device = model, torch.device(order.device)
        self._autocast = torch.bfloat16 if order.precision == "bf16" else None
        self._mean = torch.tensor(IMAGENET_MEAN, device=self._device).view(-1, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self._device).view(-1, 1, 1)

    def step(self, batch: Pairs) -> Mapping[str, torch.Tensor]:
        query, query_mask, key, key_mask = (part.to(self._device, non_blocking=True) for part in batch)
        result = self._model.step(
            self._normalised(query), query_mask, self._normalised(key), key_mask, autocast=self._autocast
        )
        return {
            "loss": result.loss,
            "contrastive": result.contrastive,
            "saliency": result.saliency,
            "foreground": result.foreground,
        }

    def synchronise(self) -> None:
        self._model.synchronise()

    def state_dict(self) -> Mapping[str, Any]:
        return self._model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        return self._model.load_state_dict(state, strict=True)

    @torch.no_grad()
    def panel(self, batch: Pairs) -> NDArray[np.uint8]:
        """Some of the batch's query views as the network sees them, in eval mode."""
        network: nn.Module = self._model.model_q
        views = batch.query[:_PANEL_ROWS]
        network.eval()
        try:
            maps = network(self._normalised(views.to(self._device)))
        finally:
            self._model.train()
        return panel(
            views.permute(0, 2, 3, 1).numpy(),
            batch.query_mask[:_PANEL_ROWS].numpy(),
            maps["saliency"].squeeze(1).sigmoid().float().cpu().numpy(),
            maps["embedding"].permute(0, 2, 3, 1).float().cpu().numpy(),
        )

    def _normalised(self, pictures: torch.Tensor) -> torch.Tensor:
        return (pictures.to(torch.float32) / 255 - self._mean) / self._std
