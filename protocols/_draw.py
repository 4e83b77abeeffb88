"""Parts of a split, drawn by the names of its pictures: the same on every machine, and nested; and what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.errors import DatasetError, InputError

__all__ = ["drawn", "held_out", "rare_first", "require_labels"]

HELD_OUT = 10
"""One picture in so many is held out where there is something to choose."""


def drawn(names: Sequence[str], number: int, seed: int | str) -> list[int]:
    """Indices of the first `number` names in the order of sha256(seed + name), ascending.

    A smaller number of the same seed gives a part of what a larger one gives.
    """
    return sorted(_order(names, seed)[:number])


def held_out(names: Sequence[str], counts: NDArray[np.int64]) -> list[int]:
    """Indices of a tenth of a split, one picture at least, that settings are chosen on; the rest has labels too.

    Pictures without a labelled pixel tell nothing and are not drawn. counts: pixels of each class and, last, void,
    (pictures, classes + 1). Raises InputError where fewer than two pictures have labels.
    """
    places: list[int] = np.flatnonzero(counts[:, :-1].any(1)).tolist()
    if len(places) < 2:
        raise InputError(
            f"there is {len(places) or 'no'} picture with labels to train on: none can be held out to choose between "
            "settings; give one of each, e.g. --set linear.lr=0.001, or let the scored split choose, --set "
            "choose_on=scored"
        )
    chosen = drawn([names[place] for place in places], max(1, round(len(places) / HELD_OUT)), "held out")
    return [places[index] for index in chosen]


def require_labels(counts: NDArray[np.int64], what: str, fix: str = "") -> None:
    """DatasetError where the pictures to learn from hold no labelled pixel.

    counts: pixels of each class and, last, void, (pictures, classes + 1). what: whose label maps they are. fix: what
    else than correcting them would do.
    """
    if not counts[:, :-1].any():
        raise DatasetError(
            f"the label maps of {what} hold nothing but void (255): there is nothing to learn from; correct them{fix}"
        )


def rare_first(names: Sequence[str], counts: NDArray[np.int64], number: int, seed: int | str) -> list[int]:
    """Indices of `number` pictures that hold every class as soon as possible, ascending.

    The order goes over the classes from the one in fewest pictures on, again and again, and takes for each the first
    picture in the order of `drawn` that holds it and is not taken; then come the pictures without any class. A smaller
    number of the same seed gives a part of what a larger one gives.

    counts: pixels of each class, (pictures, classes).
    """
    order = np.array(_order(names, seed))
    held = counts[order] > 0
    classes = [c for c in np.argsort(held.sum(0), kind="stable") if held[:, c].any()]
    taken = np.zeros(len(order), np.bool_)
    chosen: list[int] = []
    while classes and len(chosen) < number:
        for c in list(classes):
            free = np.flatnonzero(held[:, c] & ~taken)
            if not len(free):
                classes.remove(c)
            elif len(chosen) < number:
                taken[free[0]] = True
                chosen.append(int(order[free[0]]))
    chosen += [int(index) for index in order[~taken]][: number - len(chosen)]
    return sorted(chosen)


def _order(names: Sequence[str], seed: int | str) -> list[int]:
    return sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}{names[index]}".encode()).hexdigest())
