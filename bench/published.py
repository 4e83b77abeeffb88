"""Figures of papers, from `published.csv` beside this file, laid beside the rows that they can be held against."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bench.store import Row
from bench.tables import METHOD_KEYS, CardLookup, family, method_text, registered

__all__ = ["Figure", "beside", "figures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure, a line of `published.csv`.

    method: as a table names it (`swav`, `maskcontrast@unsupervised-saliency`), or in words where the harness has no
        such method or checkpoint. pictures: how many the split holds, so that no part of it is compared.
    settings: what a row must have been scored under to be comparable, `key=value …`.
    miou: in percent, as printed. source: where it is printed. note: how it was scored, and how it was read.
    """

    method: str
    dataset: str
    split: str
    pictures: int
    protocol: str
    settings: str
    miou: float
    source: str
    note: str

    def fits(self, run: Mapping[str, Any]) -> bool:
        """Whether a run scores what this figure is of: the same protocol and settings on the whole of the same data."""
        data, settings = run.get("dataset") or {}, run.get("settings") or {}
        wanted = dict(pair.split("=", 1) for pair in self.settings.split())
        return (
            run.get("protocol") == self.protocol
            and [data.get(key) for key in ("name", "split", "pictures")] == [self.dataset, self.split, self.pictures]
            and all(str(settings.get(key)) == value for key, value in wanted.items())
        )


def figures() -> tuple[Figure, ...]:
    """Everything in `published.csv`, in its order."""
    text = files("bench").joinpath("published.csv").read_text("utf-8")
    lines: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return tuple(Figure(**line | {"pictures": int(line["pictures"]), "miou": float(line["miou"])}) for line in lines)


def beside(
    rows: Sequence[Row], published: Sequence[Figure] | None = None, *, cards: CardLookup = registered
) -> list[Row]:
    """Stand-ins for rows that carry published figures, to be given to `bench.tables.build` after the rows themselves.

    Each run of a protocol, its settings and its data gets the figures that fit it, under the method of a row where one
    has that name (whichever map it reads: a paper's figure is of the map that the paper reads). A stand-in has the run
    of its neighbour, an entry `published` with the source, no seeds and one figure.
    """
    names = {id(row): method_text({**row.run, "tap": None}, cards("methods", family(row))) for row in rows}
    found: dict[str, Row] = {}
    for figure in figures() if published is None else published:
        fitting = [row for row in rows if figure.fits(row.run)]
        namesake = next((row for row in [*fitting, *rows] if names[id(row)] == figure.method), None)
        for row in fitting:
            stand_in = _stand_in(figure, row, namesake)
            found[stand_in.key] = stand_in
    return list(found.values())


def _stand_in(figure: Figure, neighbour: Row, namesake: Row | None) -> Row:
    """namesake: a row of the method that the figure is of."""
    method = {key: namesake.run[key] for key in METHOD_KEYS if key in namesake.run} if namesake else {}
    others = {key: value for key, value in neighbour.run.items() if key not in METHOD_KEYS}
    return Row(
        run={"method": figure.method, **method, **others, "published": figure.source},
        headline=neighbour.headline,
        per_seed=(),
        mean={"scores": {neighbour.headline["rule"]: {neighbour.headline["metric"]: figure.miou / 100}}},
        std={},
        notes=(f"{figure.source}: {figure.note}",),
    )
