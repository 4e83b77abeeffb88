"""Maps of small numbers, one per picture, kept in little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PackedMaps"]


class PackedMaps(Sequence[NDArray[np.uint8]]):
    """Maps of ids, uint8 (H, W), one per picture, compressed: one of 375 × 500 takes a few kilobytes."""

    def __init__(self, maps: Iterable[NDArray[np.uint8]] = ()) -> None:
        self._packed: list[tuple[tuple[int, ...], bytes]] = []
        for map_ in maps:
            self.append(map_)

    def append(self, map_: NDArray[np.uint8]) -> None:
        """One picture's map more."""
        self._packed.append((map_.shape, zlib.compress(map_.tobytes(), 1)))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: Any) -> Any:
        shape, packed = self._packed[index]
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
