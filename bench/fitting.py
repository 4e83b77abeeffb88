"""Training within an evaluation: the training loop with batches, a run folder, a journal, and exact resume."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench import distributed
from bench.batches import Batches, batch_size, fetch
from bench.contracts import Learner, Lessons
from bench.journal import journal
from bench.kernels import settle
from bench.processes import on_rank_0
from bench.runs import RunFolder
from bench.trainer import Course, Report, Shelf, train

__all__ = ["fit", "forget_checkpoints"]

log = logging.getLogger(__name__)

_SAVE_AT_LEAST, _SAVES_AT_MOST = 50, 20
"""Steps between two checkpoints, unless an epoch is longer, and the number of checkpoints: a network may be large."""


def fit(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    lessons: Lessons,
    *,
    folder: RunFolder,
    rate: str,
    facts: Mapping[str, Any],
    device: str,
    workers: int,
    seed: int,
) -> None:
    """Teach a learner to the end of its lessons; checkpoints of a run of the same lessons in `folder` are gone on from.

    rate: the setting of the learning rate, as people type it. facts: what else the record of the run says. workers:
    processes that make samples, where the lessons allow it.
    The number of threads is that of `bench.kernels`, whatever the shell says.
    Raises InputError naming the step when the loss is not a number, SettingError when the folder holds another run.
    """
    kernels = settle()
    batches = Batches(
        lessons.samples,
        batch_size(lessons.batch, lessons.samples, distributed.world()),
        seed,
        drop_last=lessons.drop_last,
    )
    record = {
        **facts,
        "seed": seed,
        **kernels.facts(),
        "architecture": dict(lessons.architecture),
        "course": {"samples": lessons.samples, "batch": lessons.batch, "steps": lessons.steps},
    }
    on_rank_0(lambda: folder.open(record, resume=True))
    shelf = Shelf(
        folder=folder.checkpoints, fix=folder.fix, architecture=dict(lessons.architecture), record=record, keep=1
    )
    done = shelf.restore(learner, optimizer)
    if done:
        log.info("%s: training is taken up again after %d of %d steps", folder.path.name, done, lessons.steps)
    course = Course(
        steps=lessons.steps,
        schedule=lessons.schedule,
        rate=rate,
        device=device,
        seed=seed,
        save_every=max(batches.per_epoch, _SAVE_AT_LEAST, lessons.steps // _SAVES_AT_MOST),
        epoch=batches.per_epoch if lessons.after_epoch else 0,
    )
    fetched = fetch(
        lessons.make,
        batches,
        range(done, lessons.steps),
        collate=lessons.collate,
        workers=0 if lessons.here else workers,
        pin=device.startswith("cuda"),
    )

    def look(report: Report) -> None:
        if lessons.after_epoch and report.done % batches.per_epoch == 0:
            lessons.after_epoch(report.done // batches.per_epoch)

    keeper = journal(folder.path, record, steps=lessons.steps, done=done, batch=batches.batch)
    with kernels.used(), keeper as journey:
        train(learner, optimizer, fetched, course, done=done, shelf=shelf, observers=[journey, look])


def forget_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished training; its record and its curves stay."""
    shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)
