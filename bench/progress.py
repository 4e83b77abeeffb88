"""Progress on stderr for people who watch; nothing at all where stderr is no terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

__all__ = ["Tick", "progress", "track"]

T = TypeVar("T")

_shown = threading.Lock()
"""Held while a bar is shown."""


class Tick(Protocol):
    """Moves a bar on by a number of steps; a note stands beside what is being done, until the next one."""

    def __call__(self, steps: int, /, *, note: str = "") -> None: ...


@contextmanager
def progress(total: int, what: str, *, done: int = 0) -> Iterator[Tick]:
    """A bar with counts and ETA around work of `total` steps, of which `done` were done before.

    Work within such work has no bar of its own: a terminal shows one at a time.
    """
    if not sys.stderr.isatty() or _shown.locked():
        yield _nothing
        return
    with _shown:
        yield from _bar(total, what, done)


def _bar(total: int, what: str, done: int) -> Iterator[Tick]:
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
