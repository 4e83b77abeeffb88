"""Rows of one configuration trained with several seeds: what training again would show.

The seeds of a row are those of its clustering or head on one network; those of a family are of training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.store import Row

__all__ = ["Family", "leader"]


@dataclass(frozen=True, slots=True)
class Family:
    """A figure over training seeds, in [0, 1].

    mean: of the rows' means. std: their sample standard deviation, None for one row. within: the root mean square of
    the rows' own standard deviations over seeds of clustering, None where a row has one seed.
    """

    mean: float
    std: float | None
    within: float | None
    trainings: int

    @classmethod
    def of(cls, rows: Sequence[Row], part: str = "scores") -> Family | None:
        """The headline of rows that differ in their training seed alone; None where one of them has no such figure.

        part: what is averaged, see `bench.store.Row.figure`.
        """
        means = [row.figure(part) for row in rows]
        found = [mean for mean in means if mean is not None]
        if not found or len(found) < len(means):
            return None
        inside = [row.figure(part, statistic="std") for row in rows]
        squares = [deviation**2 for deviation in inside if deviation is not None]
        return cls(
            mean=statistics.fmean(found),
            std=statistics.stdev(found) if found[1:] else None,
            within=math.sqrt(statistics.fmean(squares)) if len(squares) == len(rows) else None,
            trainings=len(rows),
        )


def leader(families: Sequence[Family | None]) -> int | None:
    """The index of the one with the highest mean, None unless it leads by more than the spread over training seeds.

    The spread is the larger standard deviation of it and the other; nobody leads where one of them has none.
    """
    there = [(family.mean, index) for index, family in enumerate(families) if family is not None]
    if not there:
        return None
    best = max(there)[1]
    others = [family for index, family in enumerate(families) if family is not None and index != best]
    return best if others and all(_apart(families[best], other) for other in others) else None


def _apart(best: Family | None, other: Family) -> bool:
    if best is None or best.std is None or other.std is None:
        return False
    return best.mean - other.mean > max(best.std, other.std)
