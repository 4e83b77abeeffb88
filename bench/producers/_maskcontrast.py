"""MaskContrast at work: pictures, network and optimizer put together and handed to the training loop."""

from __future__ import annotations

import contextlib
import logging
import shlex
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
from bench.datasets import default_dataset
from bench.journal import journal, require_wandb
from bench.networks.maskcontrast import MaskContrastNetwork
from bench.panels import panel
from bench.produce import Order, init_body
from bench.runs import RunFolder
from bench.trainer import Course, Report, Schedule, Shelf, poly, train
from bench.weights import seeded

from ._export import check_reference, export_reference
from ._pairs import Pairs, PairSet, Pictures, loader
from .maskcontrast import MaskContrastSettings

__all__ = ["run"]

log = logging.getLogger(__name__)

_SAVE_AT_LEAST = 100
_PANEL_ROWS = 4


def run(order: Order) -> Path:
    """Train MaskContrast as ordered; returns the run's folder."""
    settings: MaskContrastSettings = order.settings
    if order.wandb:
        require_wandb()
    if order.export:
        check_reference(settings)
    split = settings.split or ("trainaug" if "trainaug" in order.dataset.splits() else order.dataset.train_split)
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
    _sum_up(order, folder, steps, report)
    return folder.path


def _train(
    order: Order,
    model: MaskContrast,
    pictures: Pictures,
    batches: Batches,
    folder: RunFolder,
    record: Mapping[str, Any],
) -> Report | None:
    """Go from the last checkpoint of the folder, or from the beginning, to the last step of the record."""
    settings: MaskContrastSettings = order.settings
    steps = record["course"]["steps"]
    model.to(order.device)
    optimizer, learner = _optimizer(model, settings), _Learner(model, order)
    shelf = Shelf(folder=folder.checkpoints, architecture=record["architecture"], record=record, keep=settings.run.keep)
    done = shelf.restore(learner, optimizer)
    model.synchronise()
    if done == steps:
        return None
    if done:
        log.info("resumed at step %d of %d", done, steps)
    course = Course(
        steps=steps,
        schedule=_schedule(settings, steps, batches.per_epoch),
        device=order.device,
        seed=order.seed,
        log_every=settings.run.log_every,
        save_every=settings.run.save_every or max(batches.per_epoch, _SAVE_AT_LEAST),
    )
    pairs = PairSet(pictures, settings.augment, settings.masks, order.seed)
    # its workers are started before the journal's threads can hold a lock that they would inherit
    fetched = loader(pairs, batches, range(done, steps), workers=order.workers, pin=order.device.startswith("cuda"))
    keeper = journal(
        folder.path,
        record,
        steps=steps,
        done=done,
        batch=batches.batch,
        wandb=order.wandb,
        panel_every=settings.run.panel_every,
        panel=learner.panel,
    )
    with keeper as journey, _fast_convolutions(order.device):
        return train(learner, optimizer, fetched, course, done=done, shelf=shelf, observers=[journey])


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


def _fast_convolutions(device: str) -> contextlib.AbstractContextManager[Any]:
    """Let cuDNN try which of its algorithms is fastest: all batches have one size."""
    if not device.startswith("cuda"):
        return contextlib.nullcontext()
    fast: contextlib.AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, benchmark=True, deterministic=False, allow_tf32=True
    )
    return fast


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


def _sum_up(order: Order, folder: RunFolder, steps: int, report: Report | None) -> None:
    if distributed.rank():
        return
    words = ["bench", "eval", "--method", f"{order.card.name}@{folder.path}", "--protocol", "kmeans"]
    if order.dataset_spec != default_dataset():
        words += ["--dataset", order.dataset_spec]
    loss = f", loss {report.figures['loss']:.3f}" if report else ", all done before"
    log.info("%d steps%s; score it: %s", steps, loss, shlex.join(words))
