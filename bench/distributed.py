"""Several processes as one: sums, gathers and exchanges that do nothing where there is no process group.

All functions are called by every process in the same order. Blocks of rows are put together in the order of ranks and
may differ in length between processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import distributed

__all__ = ["broadcast_", "exchange", "gather", "offset", "rank", "sum_", "world"]

_BUCKET_BYTES = 32 * 2**20
"""Tensors are put together up to this size, so that small ones do not cost a message each."""


def world() -> int:
    """Number of processes; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 without a process group."""
    return distributed.get_rank() if world() > 1 else 0


def gather(block: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The blocks (n_r, …) of all processes one below the other, and each n_r; no gradient passes."""
    if world() == 1:
        return block.detach(), (len(block),)
    sizes = _sizes(block)
    padded = block.new_zeros((max(sizes), *block.shape[1:]))
    padded[: len(block)] = block.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes


def offset(sizes: Sequence[int]) -> int:
    """Where this process's rows begin among the gathered ones."""
    return sum(sizes[: rank()])


def sum_(tensors: Iterable[torch.Tensor], *, divide: bool = False) -> None:
    """Replace tensors by their sum over all processes, or by their mean, in place."""
    if world() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        distributed.all_reduce(flat)
        _unpack(flat / world() if divide else flat, bucket)


def broadcast_(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by those of rank 0, in place."""
    if world() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        distributed.broadcast(flat, 0)
        _unpack(flat, bucket)


def exchange(*blocks: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The pictures of all processes dealt out anew in a random order, so that batch norm sees a mixed batch.

    blocks: tensors (n, …) whose rows belong together. Every process keeps its number of rows.
    Returns the new rows, and the order (sum of n,), int64 on the CPU: row `order[i]` of the gathered blocks is row i of
    the gathered new ones. The order is drawn by rank 0 from torch's global generator. Source: shuffled batch norm of
    MoCo (He et al., arXiv 1911.05722, §3.3).
    """
    total = len(blocks[0])
    if world() == 1:
        return blocks, torch.arange(total)
    gathered, sizes = zip(*(gather(block) for block in blocks), strict=True)
    order = torch.randperm(sum(sizes[0])) if rank() == 0 else torch.empty(sum(sizes[0]), dtype=torch.int64)
    device = blocks[0].device
    on_device = order.to(device)
    distributed.broadcast(on_device, 0)
    mine = on_device[offset(sizes[0]) :][:total]
    return tuple(rows[mine] for rows in gathered), on_device.cpu()


def _sizes(block: torch.Tensor) -> tuple[int, ...]:
    own = torch.tensor([len(block)], device=block.device)
    sizes = [torch.empty_like(own) for _ in range(world())]
    distributed.all_gather(sizes, own)
    return tuple(int(size) for size in sizes)


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Tensors of one type, in an order that all processes share, in groups of at most the bucket's size."""
    for _, alike in groupby(sorted(tensors, key=lambda tensor: str(tensor.dtype)), key=lambda tensor: tensor.dtype):
        bucket: list[torch.Tensor] = []
        held = 0
        for tensor in alike:
            if bucket and held + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, held = [], 0
            bucket.append(tensor)
            held += tensor.nbytes
        if bucket:
            yield bucket


def _unpack(flat: torch.Tensor, bucket: Sequence[torch.Tensor]) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
