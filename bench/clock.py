"""Seconds by phase, and the peak of memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Clock", "peak_memory"]


class Clock:
    """Adds up the seconds of named phases; phases may be entered again and again, not nested in themselves."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by phase; what several rows share is charged to the first."""
        taken, self.seconds = self.seconds, {}
        return taken


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes.

    Where the kernel tells it, the figure of this program alone: `getrusage` starts from what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
