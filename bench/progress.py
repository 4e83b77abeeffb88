"""Progress on stderr for people who watch; nothing at all where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

__all__ = ["Tick", "progress", "track"]

T = TypeVar("T")


class Tick(Protocol):
    """Moves a bar on by a number of steps; a note stands beside what is being done, until the next one."""

    def __call__(self, steps: int, /, *, note: str = "") -> None: ...


@contextmanager
def progress(total: int, what: str, *, done: int = 0) -> Iterator[Tick]:
    """A bar with counts and ETA around work of `total` steps, of which `done` were done before."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def tick(steps: int, /, *, note: str = "") -> None:
            bar.update(task, advance=steps, description=f"{what} {note}" if note else None)

        yield tick


def _nothing(steps: int, /, *, note: str = "") -> None:
    pass


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Iterate over `items` under such a bar."""
    with progress(total, what) as tick:
        for item in items:
            yield item
            tick(1)
