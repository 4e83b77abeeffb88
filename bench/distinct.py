"""Vectors gathered from a stream, equal ones only once.

Maps of labels, or of colours of drawn pictures, repeat few vectors millions of times. K-means on the distinct vectors
with their multiplicities is the same problem, at the size of the distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import InternalError

__all__ = ["Gathered", "Gatherer", "multiplicities", "spread_out"]

Floats = NDArray[np.float32]
Index = NDArray[np.unsignedinteger[Any]]

_PART = 1 << 20  # vectors at a time


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """vectors: float32 (U, d). index: for each of the N vectors of the stream its row, or None where U = N in order.

    The index is of the smallest unsigned type that holds U: for maps of labels, one byte per vector is all there is.
    """

    vectors: Floats
    index: Index | None


def multiplicities(index: Index, vectors: int) -> NDArray[np.float64]:
    """How often each of so many vectors stands in an index, float64 (vectors,), in little memory beside it."""
    counts = np.zeros(vectors, np.int64)
    for part in _parts(len(index)):
        counts += np.bincount(index[part], minlength=vectors)
    return counts.astype(np.float64)


def spread_out(values: NDArray[Any], index: Index) -> NDArray[Any]:
    """`values[index]` in little memory beside it: numpy would make an index of 8 bytes each."""
    found = np.empty((len(index), *values.shape[1:]), values.dtype)
    for part in _parts(len(index)):
        found[part] = values[index[part]]
    return found


def _parts(number: int) -> Iterator[slice]:
    return (slice(start, start + _PART) for start in range(0, number, _PART))


class Gatherer:
    """Takes blocks (n, D), keeps `transform(block)` (n, d) of them.

    expected: N, the vectors of the whole stream. Equal vectors are merged as long as they repeat: from the first block
    of which more than half is new on (a fourth, once `_FEW` are known), all are kept one by one in an array of N rows,
    the only copy in memory.
    """

    def __init__(self, expected: int, transform: Callable[[Floats], Floats]) -> None:
        self._expected = expected
        self._transform = transform
        self._taken = 0
        self._plain: Floats | None = None
        self._rows: dict[int, int] = {}
        self._table: Floats = np.empty((0, 0), np.float32)
        self._index: Index | None = None

    def add(self, block: Floats) -> None:
        """Take in the next vectors of the stream."""
        if self._plain is None and not self._add_distinct(block):
            self._spread_out()
        if self._plain is not None:
            self._add_plain(self._transform(block))
        self._taken += len(block)

    def result(self) -> Gathered:
        """What was gathered; InternalError unless exactly the expected number of vectors came."""
        if self._taken != self._expected or self._taken == 0:
            raise InternalError(f"the maps gave {self._taken} vectors, {self._expected} were promised")
        if self._plain is not None:
            return Gathered(self._plain, None)
        return Gathered(self._transform(self._table[: len(self._rows)]), self._index)

    def _add_plain(self, rows: Floats) -> None:
        if self._plain is None or not self._plain.size:
            self._plain = np.empty((self._expected, rows.shape[1]), np.float32)
        self._plain[self._taken : self._taken + len(rows)] = rows

    def _add_distinct(self, block: Floats) -> bool:
        """Number the block's vectors by what was seen before; False, and nothing done, where they do not repeat."""
        hashes, first, inverse = np.unique(_hash(block), return_index=True, return_inverse=True)
        known = len(self._rows)
        unseen = [int(value) for value in hashes if int(value) not in self._rows]
        if known + len(unseen) > max(_FEW, (self._taken + len(block)) / 4) or len(unseen) > len(block) / 2:
            return False
        self._rows |= {value: known + position for position, value in enumerate(unseen)}
        number = np.array([self._rows[int(value)] for value in hashes], np.uint32)
        new = number >= known
        self._grow(len(self._rows), block.shape[1])
        self._table[number[new]] = block[first[new]]
        index = number[inverse.reshape(-1)]
        if not np.array_equal(self._table[index], block, equal_nan=True):
            raise InternalError("two vectors have one hash: their cells would be mixed up")
        self._keep(index)
        return True

    def _keep(self, index: NDArray[np.uint32]) -> None:
        narrow = np.min_scalar_type(len(self._rows) - 1)
        if self._index is None:
            self._index = np.empty(self._expected, narrow)
        elif narrow.itemsize > self._index.itemsize:
            self._index = self._index.astype(narrow)
        self._index[self._taken : self._taken + len(index)] = index

    def _grow(self, rows: int, width: int) -> None:
        if rows > len(self._table):
            table = np.empty((2 * rows, width), np.float32)
            table[: len(self._table)] = self._table.reshape(-1, width)
            self._table = table

    def _spread_out(self) -> None:
        """Go on one by one: what was merged so far is written out."""
        self._plain = np.empty((0, 0), np.float32)
        if self._index is not None:
            index, taken = self._index[: self._taken], self._taken
            vectors = self._transform(self._table[: len(self._rows)])
            for part in _parts(taken):
                self._taken = part.start
                self._add_plain(vectors[index[part]])
            self._taken = taken
        self._rows, self._table, self._index = {}, np.empty((0, 0), np.float32), None


_FEW = 1024


def _hash(block: Floats) -> NDArray[np.uint64]:
    """64 bits per vector, equal for equal bits: sorting numbers is far faster than sorting rows."""
    bits = np.ascontiguousarray(block).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], np.uint64) | np.uint64(1)
    mixed = bits * factors  # wraps around on purpose
    mixed ^= mixed >> np.uint64(29)
    return np.asarray((mixed * factors[::-1]).sum(1, dtype=np.uint64))
