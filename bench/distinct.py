"""Vectors gathered from a stream, equal ones only once.

Maps of labels, or of colours of drawn pictures, repeat few vectors millions of times. K-means on the distinct vectors
with their multiplicities is the same problem, at the size of the distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import InternalError

__all__ = ["Gathered", "Gatherer"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """vectors: float32 (U, d). index: for each of the N vectors of the stream its row, or None where U = N in order."""

    vectors: Floats
    index: NDArray[np.uint32] | None


class Gatherer:
    """Takes blocks (n, D), keeps `transform(block)` (n, d) of them.

    expected: N, the vectors of the whole stream. Repetition is judged by the first block: unless half of its vectors
    repeat, all are kept one by one in an array of N rows, the only copy in memory.
    """

    def __init__(self, expected: int, transform: Callable[[Floats], Floats]) -> None:
        self._expected = expected
        self._transform = transform
        self._taken = 0
        self._plain: Floats | None = None
        self._rows: dict[int, int] = {}
        self._raw: list[Floats] = []
        self._index: list[NDArray[np.uint32]] = []

    def add(self, block: Floats) -> None:
        """Take in the next vectors of the stream."""
        if self._plain is None and self._repeats(block):
            self._add_distinct(block)
        else:
            self._add_plain(self._transform(block))
        self._taken += len(block)

    def result(self) -> Gathered:
        """What was gathered; InternalError unless exactly the expected number of vectors came."""
        if self._taken != self._expected or self._taken == 0:
            raise InternalError(f"the maps gave {self._taken} vectors, {self._expected} were promised")
        if self._plain is not None:
            return Gathered(self._plain, None)
        return Gathered(self._transform(np.concatenate(self._raw)), np.concatenate(self._index))

    def _repeats(self, block: Floats) -> bool:
        return bool(self._index) or len(np.unique(_hash(block))) <= len(block) / 2

    def _add_plain(self, rows: Floats) -> None:
        if self._plain is None:
            self._plain = np.empty((self._expected, rows.shape[1]), np.float32)
        self._plain[self._taken : self._taken + len(rows)] = rows

    def _add_distinct(self, block: Floats) -> None:
        """Number the block's vectors by what was seen before; new ones are appended."""
        hashes, first, inverse = np.unique(_hash(block), return_index=True, return_inverse=True)
        known = len(self._rows)
        number = np.array([self._rows.setdefault(int(value), len(self._rows)) for value in hashes], np.uint32)
        new = number >= known
        if new.any():
            self._raw.append(block[first[new][np.argsort(number[new])]])
        index = number[inverse.reshape(-1)]
        self._index.append(index)
        if not np.array_equal(np.concatenate(self._raw)[index], block, equal_nan=True):
            raise InternalError("two vectors have one hash: their cells would be mixed up")


def _hash(block: Floats) -> NDArray[np.uint64]:
    """64 bits per vector, equal for equal bits: sorting numbers is far faster than sorting rows."""
    bits = np.ascontiguousarray(block).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], np.uint64) | np.uint64(1)
    mixed = bits * factors  # wraps around on purpose
    mixed ^= mixed >> np.uint64(29)
    return np.asarray((mixed * factors[::-1]).sum(1, dtype=np.uint64))
