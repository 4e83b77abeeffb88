"""Parts of a split, drawn by the names of its pictures: the same on every machine, and nested."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["drawn"]


def drawn(names: Sequence[str], number: int, seed: int | str) -> list[int]:
    """Indices of the first `number` names in the order of sha256(seed + name), ascending.

    A smaller number of the same seed gives a part of what a larger one gives.
    """
    order = sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}{names[index]}".encode()).hexdigest())
    return sorted(order[:number])
