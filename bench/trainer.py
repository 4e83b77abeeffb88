"""The training loop: steps, learning rate, optimizer, figures, checkpoints, exact resume.

It knows nothing of what is trained. A `Learner` leaves gradients in `.grad`; the loop owns everything around that.
Between two steps the state of a run is only the learner's, the optimizer's, and the number of steps done: batches and
chance (dropout) are functions of the seed and the step, so that a run that was killed and resumed equals one that was
not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from bench import distributed
from bench.checkpoints import read_checkpoint
from bench.contracts import Learner
from bench.errors import CheckpointError, InputError
from bench.files import write_atomic

__all__ = ["Course", "Observer", "Report", "Schedule", "Shelf", "poly", "train"]

Schedule = Callable[[int], float]
"""Step (from 0) -> what the learning rates are multiplied by."""

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a run goes from its first step to its last.

    rate: the setting of the learning rate, as people type it. seed: of what is random within a step. log_every,
    save_every: in steps. epoch: steps after each of which there is a report in any case; 0: none.
    """

    steps: int
    schedule: Schedule
    rate: str = "lr"
    device: str = "cpu"
    seed: int = 0
    log_every: int = 10
    save_every: int = 100
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened since the last report.

    done: steps done so far. steps: those done since the last report. figures: the learner's, means over these steps and
    over processes. lr: of each parameter group in the last step. seconds: that the steps took; waited: those of them
    spent waiting for batches. batch: the last one, on this process.
    """

    done: int
    steps: int
    figures: Mapping[str, float]
    lr: tuple[float, ...]
    seconds: float
    waited: float
    batch: Any


Observer = Callable[[Report], None]


def poly(steps: int, power: float = 0.9, *, warmup: int = 0, hold: int = 1) -> Schedule:
    """The polynomial decay (1 - step / steps)^power of DeepLab (Chen et al., TPAMI 2018).

    warmup: steps in which the rate also rises linearly. hold: steps in which it stays the same (decay by epochs).
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return float(rise * (1 - step // hold * hold / steps) ** power)

    return factor


def train(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    course: Course,
    *,
    done: int = 0,
    shelf: Shelf | None = None,
    observers: Iterable[Observer] = (),
) -> Report | None:
    """Take the steps `done` … `course.steps` - 1; returns the last report, None where there was nothing left to do.

    batches: one per step, the first being that of step `done`. The learning rates the optimizer came with are the
    base that the schedule multiplies. Every process calls this; observers are called on all, rank 0 fills the shelf.

    Raises InputError naming the step when the loss is not a number; the last checkpoint before it is kept.
    """
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
    meter, source, report = _Meter(course.rate), iter(batches), None
    with _own_chance(course.device):
        for step in range(done, course.steps):
            batch = meter.wait(source)
            torch.manual_seed(_seed_of(course.seed, step, distributed.rank()))
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * course.schedule(step)
            optimizer.zero_grad(set_to_none=True)
            figures = learner.step(batch)
            optimizer.step()
            meter.add(figures)
            last, now = step + 1 == course.steps, step + 1
            save = shelf is not None and (last or now % course.save_every == 0)
            if save or last or now % course.log_every == 0 or (course.epoch and now % course.epoch == 0):
                report = meter.report(now, tuple(group["lr"] for group in optimizer.param_groups), batch)
                for observer in observers:
                    observer(report)
                meter.resume()
            if save and shelf is not None:
                shelf.save(now, learner, optimizer)
    return report


def _seed_of(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step and process, within what torch takes."""
    return ((seed * 1_000_003 + step) * 4096 + rank) % 2**63


@contextmanager
def _own_chance(device: str) -> Iterator[None]:
    """torch's global generators are as before afterwards."""
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        yield


@dataclass(slots=True)
class _Meter:
    """Gathers the figures of steps without making the device wait, and the time they took.

    rate: the setting to be lowered when the loss is not a number.
    """

    rate: str
    pending: list[Mapping[str, torch.Tensor]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def wait(self, source: Iterator[Any]) -> Any:
        start = time.perf_counter()
        batch = next(source)
        self.waited += time.perf_counter() - start
        return batch

    def add(self, figures: Mapping[str, torch.Tensor]) -> None:
        self.pending.append({name: figure.detach() for name, figure in figures.items()})

    def resume(self) -> None:
        """What happened since the report is not part of the steps' time."""
        self.since = time.perf_counter()

    def report(self, done: int, lr: tuple[float, ...], batch: Any) -> Report:
        """Read the figures gathered, means over processes; InputError when a loss among them is not a number."""
        names, first = tuple(self.pending[0]), done - len(self.pending)
        table = torch.stack([torch.stack([row[name].float() for name in names]) for row in self.pending])
        distributed.sum_([table], divide=True)
        rows = [dict(zip(names, row, strict=True)) for row in table.tolist()]
        for step, row in enumerate(rows, start=first + 1):
            if not math.isfinite(row["loss"]):
                rates = " and ".join(f"{rate:g}" for rate in dict.fromkeys(lr))
                raise InputError(
                    f"the loss of step {step} is {row['loss']} at a learning rate of {rates}: lower it (--set "
                    f"{self.rate}=…) or look at the pictures; the last checkpoint is from before that step"
                )
        means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}
        now = time.perf_counter()
        report = Report(
            done=done,
            steps=len(rows),
            figures=means,
            lr=lr,
            seconds=now - self.since,
            waited=self.waited,
            batch=batch,
        )
        self.pending, self.since, self.waited = [], now, 0.0
        return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The checkpoints of a run: `step-N.pt` after N steps, the last `keep` of them.

    Each is a dictionary of plain data and tensors: `format`, `step`, `architecture` (what the network is, as its own
    `from_description` takes it), `model` and `optimizer` (their states) and `record` (what the run is).
    fix: what can be done where the folder cannot be used; it ends the messages.
    """

    folder: Path
    fix: str
    architecture: Mapping[str, Any]
    record: Mapping[str, Any]
    keep: int = 2

    def paths(self) -> list[Path]:
        """The files that are there, by their number of steps."""
        return [path for _, path in sorted(_numbered(self.folder))]

    def save(self, done: int, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint, then remove those that are too many; on rank 0 only.

        Raises StorageError when it cannot be written; the older ones are all still there then.
        """
        if distributed.rank():
            return
        held = {
            "format": _FORMAT,
            "step": done,
            "architecture": dict(self.architecture),
            "record": dict(self.record),
            "model": dict(learner.state_dict()),
            "optimizer": optimizer.state_dict(),
        }

        def write(file: BinaryIO) -> None:
            try:
                torch.save(held, file)
            except RuntimeError as error:
                # torch's zip writer hides what the disk said behind a failed check of its own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

        write_atomic(self.folder / f"step-{done}.pt", write, fix=self.fix)
        left_by_kills = self.folder.glob(".step-*.tmp")
        for path in (*self.paths()[: -self.keep], *left_by_kills):
            path.unlink(missing_ok=True)

    def restore(self, learner: Learner, optimizer: torch.optim.Optimizer) -> int:
        """Load the last checkpoint into both and return its number of steps; 0 where there is none."""
        paths = self.paths()
        if not paths:
            return 0
        held = read_checkpoint(paths[-1])
        if held.get("format") != _FORMAT or held.get("architecture") != dict(self.architecture):
            raise CheckpointError(
                f"{paths[-1]} holds {held.get('architecture', 'no architecture')}, expected {dict(self.architecture)}: "
                f"{self.fix}"
            )
        learner.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        return int(held["step"])


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("step-*.pt") if folder.is_dir() else itertools.chain[Path]():
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            yield int(number), path
