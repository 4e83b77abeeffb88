"""Where the figures of a training run go: TensorBoard, Weights & Biases, a bar on the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench import distributed
from bench.errors import SettingError
from bench.progress import progress
from bench.trainer import Report

__all__ = ["Journal", "Page", "journal", "require_wandb"]

log = logging.getLogger(__name__)


class Page(Protocol):
    """One place where figures and pictures are written."""

    def figures(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder; after a resume, what was written beyond the last checkpoint is not shown."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, in the project `densebench`."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self._wandb = require_wandb()
        self._run = self._wandb.init(
            project="densebench",
            name=folder.name,
            dir=str(folder),
            config=dict(record),
            resume="allow",
            id=f"{folder.name}-{record.get('seed', 0)}",
        )

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()


def require_wandb() -> Any:
    """The package wandb; SettingError where it is not installed."""
    try:
        import wandb  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise SettingError("--wandb needs the package wandb: run `pip install wandb`, or leave the flag out") from error
    return wandb


class Journal:
    """An observer of `bench.trainer.train` that writes every report to its pages and to the terminal.

    batch: pictures a step over all processes. panel: makes a picture of a report's batch, every `panel_every` steps;
    None: there are none.
    """

    def __init__(
        self,
        pages: list[Page],
        tell: Callable[[Report, str], None],
        *,
        batch: int,
        panel_every: int,
        panel: Callable[[Any], NDArray[np.uint8]] | None,
    ) -> None:
        self._pages, self._tell, self._batch = pages, tell, batch
        self._panel_every, self._panel = panel_every, panel

    def __call__(self, report: Report) -> None:
        rate = self._batch * report.steps / report.seconds
        figures = {
            **report.figures,
            "lr": report.lr[0],
            "pictures_per_second": rate,
            "waiting_for_data": report.waited / report.seconds,
        }
        for page in self._pages:
            page.figures(report.done, figures)
        due = report.done // self._panel_every > (report.done - report.steps) // self._panel_every
        if self._pages and self._panel and due:
            picture = self._panel(report.batch)
            for page in self._pages:
                page.picture(report.done, "panel", picture)
        self._tell(report, f"loss {report.figures['loss']:.3f}, {rate:.0f} pictures/s")

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures of another origin than a report's."""
        for page in self._pages:
            page.figures(step, figures)


@contextmanager
def journal(
    folder: Path,
    record: Mapping[str, Any],
    *,
    steps: int,
    done: int,
    batch: int,
    wandb: bool = False,
    panel_every: int = 1,
    panel: Callable[[Any], NDArray[np.uint8]] | None = None,
) -> Iterator[Journal]:
    """The journal of a run; only rank 0 has pages and a bar. Without a terminal a line is written ten times a run."""
    if distributed.rank():
        yield Journal([], lambda report, note: None, batch=batch, panel_every=panel_every, panel=panel)
        return
    with ExitStack() as stack:
        pages: list[Page] = [TensorBoard(folder / "tensorboard", done)]
        if wandb:
            pages.append(WandB(folder, record))
        for page in pages:
            stack.callback(page.close)
        tick = stack.enter_context(progress(steps, "training", done=done))

        def tell(report: Report, note: str) -> None:
            tick(report.steps, note=note)
            tenth = max(steps // 10, 1)
            if not sys.stderr.isatty() and report.done // tenth > (report.done - report.steps) // tenth:
                log.info("step %d of %d: %s", report.done, steps, note)

        yield Journal(pages, tell, batch=batch, panel_every=panel_every, panel=panel)
