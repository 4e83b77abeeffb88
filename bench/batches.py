"""Which samples make the batch of a step, and the workers that make them.

A sample is a function of its key (epoch, index) and a batch one of (seed, step), so that neither the number of workers
nor a resume changes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from bench import distributed
from bench.contracts import Key
from bench.errors import InputError, SettingError

__all__ = ["Batches", "Key", "batch_size", "fetch", "generator", "per_epoch"]

log = logging.getLogger(__name__)

_ORDER = 1
"""What a generator is for: the first number of its key."""

_PREFETCH = 4

S = TypeVar("S")
B = TypeVar("B")


def generator(*key: int) -> np.random.Generator:
    """The generator that belongs to a key of whole numbers of at least 0; keys of different lengths never share one."""
    # a seed sequence takes [1] and [1, 0] for the same
    return np.random.default_rng(np.random.SeedSequence([len(key), *key]))


def batch_size(wanted: int, pictures: int, processes: int) -> int:
    """Pictures in a batch over all processes: `wanted`, or all there are where that is fewer.

    Raises SettingError when it cannot be dealt out evenly to the processes.
    """
    batch = min(wanted, pictures)
    if batch < processes:
        raise SettingError(
            f"a batch of {batch} is smaller than the {processes} processes: start fewer (--nproc-per-node), or take "
            "more pictures in a batch (--set batch=…)"
        )
    if batch % processes and batch == wanted:
        raise SettingError(
            f"a batch of {batch} cannot be divided among {processes} processes: set batch to a multiple of {processes}"
        )
    batch -= batch % processes
    if batch < wanted:
        log.info("%d pictures are fewer than a batch of %d: each epoch is one batch of %d", pictures, wanted, batch)
    return batch


def per_epoch(pictures: int, batch: int, drop_last: bool) -> int:
    """Steps an epoch; a train split smaller than a batch is one batch.

    drop_last: a last, smaller batch is left out where a full one precedes it; one with fewer pictures than there are
    processes always is.
    """
    full, rest = divmod(pictures, batch)
    return max(1, full + (not drop_last and rest >= distributed.world()))


@dataclass(frozen=True, slots=True)
class Batches:
    """Which samples make the batch of a step: without replacement within an epoch.

    batch: pictures over all processes. drop_last: a last, smaller batch is left out where a full one precedes it; one
    with fewer pictures than processes always is.
    """

    pictures: int
    batch: int
    seed: int
    drop_last: bool = True

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return per_epoch(self.pictures, self.batch, self.drop_last)

    def keys(self, step: int) -> list[Key]:
        """(epoch, index) of every picture of a step's batch."""
        epoch, position = divmod(step, self.per_epoch)
        order = generator(_ORDER, self.seed, epoch).permutation(self.pictures)
        return [(epoch, int(index)) for index in order[position * self.batch : (position + 1) * self.batch]]


class _Samples(Dataset[Any]):
    """Samples by key; errors about the data come as values, since a worker would wrap them in a traceback."""

    def __init__(self, make: Callable[[Key], Any]) -> None:
        self._make = make

    def __getitem__(self, key: Key) -> Any:
        try:
            return self._make(key)
        except InputError as error:
            return error


class _Steps(Sampler[list[Key]]):
    """The keys of this process, step by step."""

    def __init__(self, batches: Batches, steps: Iterable[int]) -> None:
        self._batches, self._steps = batches, steps

    def __iter__(self) -> Iterator[list[Key]]:
        rank, world = distributed.rank(), distributed.world()
        for step in self._steps:
            keys = self._batches.keys(step)
            yield keys[rank * len(keys) // world : (rank + 1) * len(keys) // world]


class _Collate:
    """`collate`, unless a sample is an error: then that."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, InputError):
                return sample
        return self._collate(samples)


def fetch(
    make: Callable[[Key], S],
    batches: Batches,
    steps: range,
    *,
    collate: Callable[[Sequence[S]], B],
    workers: int,
    pin: bool,
) -> Iterator[B]:
    """The batches of some steps, this process's share of each; the workers are started at once.

    make, collate: samples by key, and a batch of samples; they are handed to the worker processes. pin: for a GPU.
    Iterating raises InputError where a sample cannot be made.
    """
    batched = DataLoader(
        _Samples(make),
        batch_sampler=_Steps(batches, steps),
        num_workers=workers,
        collate_fn=_Collate(collate),
        pin_memory=pin,
        prefetch_factor=_PREFETCH if workers else None,
        generator=torch.Generator(),
    )
    return _checked(iter(batched) if steps else iter(()))


def _checked(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item
