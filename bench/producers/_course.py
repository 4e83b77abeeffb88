"""The way from an order to the last step, the same for all producers."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bench import contracts, distributed
from bench.batches import Batches
from bench.datasets import FolderDataset, default_dataset
from bench.journal import Journal, journal
from bench.produce import Order
from bench.runs import RunFolder
from bench.trainer import Course, Observer, Report, Schedule, Shelf, train

__all__ = ["Learner", "facts_of", "split_of", "sum_up", "travel"]

log = logging.getLogger(__name__)

_SAVE_AT_LEAST = 100


class Learner(contracts.Learner, Protocol):
    """What is trained, and what of it is shown."""

    def synchronise(self) -> None:
        """Give every process the state of rank 0; called once, before the first step."""
        ...

    def panel(self, batch: Any) -> NDArray[np.uint8]:
        """A picture, uint8 (H, W, 3), of some of a batch and of what the network makes of it."""
        ...


def split_of(order: Order) -> str:
    """The split to train on: the one asked for, else `trainaug` where there is one, else the data set's train split."""
    wanted: str = order.settings.split
    return wanted or ("trainaug" if "trainaug" in order.dataset.splits() else order.dataset.train_split)


def facts_of(dataset: FolderDataset, split: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a record says of the pictures of a run, plain."""
    return {
        "dataset": dataset.name,
        "split": split,
        "pictures": len(names),
        "fingerprint": dataset.fingerprint(names, labels=False),
    }


def travel(
    order: Order,
    folder: RunFolder,
    record: Mapping[str, Any],
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Batches,
    schedule: Schedule,
    fetch: Callable[[range], Iterator[Any]],
    held_out: Callable[[], Mapping[str, float]] | None = None,
) -> Report | None:
    """Go from the last checkpoint of the folder, or from the beginning, to the last step of the record.

    record: with `architecture`, and `course` with its number of `steps`. fetch: the batches of some steps.
    held_out: figures on pictures that are not trained on, the same on every process; taken before the first step, at
    every checkpoint and after the last step.
    """
    run, steps = order.settings.run, record["course"]["steps"]
    shelf = Shelf(
        folder=folder.checkpoints, fix=folder.fix, architecture=record["architecture"], record=record, keep=run.keep
    )
    done = shelf.restore(learner, optimizer)
    learner.synchronise()
    if done == steps:
        return None
    if done:
        log.info("resumed at step %d of %d", done, steps)
    course = Course(
        steps=steps,
        schedule=schedule,
        device=order.device,
        seed=order.seed,
        log_every=run.log_every,
        save_every=run.save_every or max(batches.per_epoch, _SAVE_AT_LEAST),
    )
    # its workers are started before the journal's threads can hold a lock that they would inherit
    fetched = fetch(range(done, steps))
    keeper = journal(
        folder.path,
        record,
        steps=steps,
        done=done,
        batch=batches.batch,
        wandb=order.wandb,
        panel_every=run.panel_every,
        panel=learner.panel,
    )
    with keeper as journey, _convolutions(order):
        look = _look(held_out, journey, course)
        if done == 0:
            look(0)
        observers: list[Observer] = [journey, lambda report: look(report.done)]
        return train(learner, optimizer, fetched, course, done=done, shelf=shelf, observers=observers)


def _look(
    held_out: Callable[[], Mapping[str, float]] | None, journey: Journal, course: Course
) -> Callable[[int], None]:
    """Called with the steps done; looks at the held-out pictures where it is time to."""

    def look(done: int) -> None:
        if held_out is None or (done % course.save_every and done != course.steps):
            return
        figures = held_out()
        journey.note(done, {f"held_out/{name}": value for name, value in figures.items()})
        if done in (0, course.steps):
            said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            log.info("held-out pictures after %d steps: %s", done, said)

    return look


def sum_up(order: Order, folder: RunFolder, steps: int, report: Report | None) -> None:
    """Say how the run ended, and the command that scores it; on rank 0 only."""
    if distributed.rank():
        return
    words = ["bench", "eval", "--method", f"{order.card.name}@{folder.path}", "--protocol", "kmeans"]
    if order.dataset_spec != default_dataset():
        words += ["--dataset", order.dataset_spec]
    loss = f", loss {report.figures['loss']:.3f}" if report else ", all done before"
    log.info("%d steps%s; score it: %s", steps, loss, shlex.join(words))


def _convolutions(order: Order) -> contextlib.AbstractContextManager[Any]:
    """Let cuDNN try which of its algorithms is fastest, since all batches have one size, unless bits are asked for."""
    if not order.device.startswith("cuda"):
        return contextlib.nullcontext()
    exact = order.kernels.deterministic
    chosen: contextlib.AbstractContextManager[Any] = torch.backends.cudnn.flags(
        enabled=True, benchmark=not exact, deterministic=exact, allow_tf32=True
    )
    return chosen
