"""The device of this process, and the processes that the standard launcher `torchrun` started."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from bench import distributed
from bench.errors import InputError, SettingError

__all__ = ["in_turn", "on_rank_0", "pick_device", "processes", "usable_device"]

T = TypeVar("T")


def pick_device(wanted: str) -> str:
    """`auto` -> `cuda` where one is usable, else `cpu`; anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def usable_device(wanted: str) -> str:
    """The device to compute on; SettingError for one that is unknown or not in this machine."""
    device = pick_device(wanted)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SettingError(f"--device {wanted} does not fit: expected auto, cpu, cuda or cuda:N")
    if device.startswith("cuda"):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2] or 0) >= found:
            seen = f"there are {found}, counted from 0" if found else "no usable NVIDIA GPU was found"
            raise SettingError(f"--device {wanted}: {seen}; use --device cpu")
    return device


@contextlib.contextmanager
def processes(wanted: str) -> Iterator[str]:
    """The device of this process; joins the group that `torchrun` started, if it did, and leaves it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield usable_device(wanted)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = usable_device(wanted)
    if device == "cuda":
        device = usable_device(f"cuda:{local}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    logger, level = logging.getLogger("bench"), logging.getLogger("bench").level
    if distributed.rank():
        logger.setLevel(logging.ERROR)
    try:
        yield device
    finally:
        logger.setLevel(level)
        torch.distributed.destroy_process_group()


def on_rank_0(compute: Callable[[], T]) -> T:
    """What rank 0 computes, on all processes; its InputError is raised on all."""
    if distributed.world() == 1:
        return compute()
    outcome: list[Any] = [None]
    if distributed.rank() == 0:
        try:
            outcome = [compute()]
        except InputError as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, 0)
    if isinstance(outcome[0], InputError):
        raise outcome[0]
    result: T = outcome[0]
    return result


def in_turn(compute: Callable[[], T]) -> T:
    """What every process computes for itself, rank 0 before the others: they find what it has fetched or written.

    An InputError of rank 0 is raised on all.
    """
    mine: list[T] = []

    def first() -> None:
        mine.append(compute())

    on_rank_0(first)
    return mine[0] if mine else compute()
