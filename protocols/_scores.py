"""Class scores as `Work.count_scores` and `Work.paint_scores` take them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.contracts import Maps, Scores

__all__ = ["as_they_are"]


def as_they_are(maps: Maps, device: str) -> Iterator[Scores]:
    """Maps that hold class scores already, one head of them."""
    for index, block in enumerate(maps):
        logits = torch.from_numpy(block).to(device).view(*maps.grid(index), -1)
        yield [(0, logits.permute(2, 0, 1)[None])]
