"""How a training computes on a CPU: with how many threads, and with oneDNN or without.

oneDNN sums a convolution's weight gradient in parts, one for each thread, and torch's own sums are cut likewise: other
threads, other bits, and after some steps other weights. A training therefore takes its number from its settings, never
from the shell or the number of cores, and gives the process its own number back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import distributed
from bench.errors import SettingError

__all__ = ["Kernels", "settle"]

log = logging.getLogger(__name__)

_THREADS = 2
_OF_SHELL = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment that torch takes its number of threads from."""

_HOLDS_BACK: Mapping[str, Callable[[str, int], bool]] = {
    "OMP_THREAD_LIMIT": lambda value, threads: value.isdigit() and int(value) < threads,
    "OMP_DYNAMIC": lambda value, threads: value == "true",
    "OMP_MAX_ACTIVE_LEVELS": lambda value, threads: value == "0",
}
"""Variables of the environment by which OpenMP starts fewer threads than it is asked for, and the values that do so."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """threads: of each process, at least 1. deterministic: without oneDNN, whose kernels differ between processors."""

    threads: int
    deterministic: bool = False

    def facts(self) -> dict[str, Any]:
        """What the record of a run says of them, plain."""
        return asdict(self)

    @property
    def said(self) -> str:
        """In words."""
        return f"{self.threads} thread{'s' * (self.threads > 1)}" + ", deterministic" * self.deterministic

    @contextmanager
    def used(self, option: str = "") -> Iterator[None]:
        """Compute with these, and as before afterwards.

        option: how people choose the number of threads, where they can. Raises SettingError where the environment
        can hold threads back.
        """
        self._check_shell(option)
        self._say_overridden(option)
        threads = torch.get_num_threads()
        mkldnn: Any = torch.backends.mkldnn
        torch.set_num_threads(self.threads)
        # not mkldnn.flags, which also sets TF32 and warns of it
        before = mkldnn.set_flags(not self.deterministic and mkldnn.is_available())
        try:
            yield
        finally:
            mkldnn.set_flags(before[0])
            torch.set_num_threads(threads)

    def _check_shell(self, option: str) -> None:
        """Threads that OpenMP holds back are waited for without end by oneDNN."""
        found = [f"{name}={os.environ[name]}" for name, holds in _HOLDS_BACK.items() if name in os.environ
                 and holds(os.environ[name].strip().lower(), self.threads)]  # fmt: skip
        if found and self.threads > 1:
            other = f", or train with {option} 1" if option else ""
            raise SettingError(
                f"{' and '.join(found)} can hold back some of the {self.threads} threads of training, which would wait "
                f"for them without end: unset it{other}"
            )

    def _say_overridden(self, option: str) -> None:
        found = [f"{name}={os.environ[name]}" for name in _OF_SHELL if name in os.environ]
        other = [text for text in found if text.partition("=")[2] != str(self.threads)]
        if other:
            chosen = f" (choose by {option} N)" if option else ""
            log.info(
                "%s %s not used: training runs with %d threads, since its result depends on their number%s",
                " and ".join(other), "are" if other[1:] else "is", self.threads, chosen,
            )  # fmt: skip


def settle(threads: int | None = None, deterministic: bool = False, kept: Mapping[str, Any] | None = None) -> Kernels:
    """What is asked for; else as the record of the run says that is gone on with; else 2 threads, with oneDNN.

    Of several processes, which share the cores of a machine as a rule, each has one thread. kept: that record.
    """
    there = kept or {}
    usual = _THREADS if distributed.world() == 1 else 1
    return Kernels(threads or there.get("threads") or usual, deterministic or bool(there.get("deterministic")))
