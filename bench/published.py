"""Figures of papers, from `published.csv` beside this file, laid beside the rows that they can be held against."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from bench.store import Row
from bench.tables import (
    METHOD_KEYS,
    CardLookup,
    changed,
    current_preset,
    family,
    method_text,
    registered,
    settled,
    usual_tap,
)

__all__ = ["Figure", "beside", "figures", "left_out"]

_ANY_WILL_DO = {"engine"}
"""Settings that papers do not state and that change no figure as it is printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One published figure, a line of `published.csv`.

    method: as a table names it (`swav`, `maskcontrast@unsupervised-saliency`), or in words where the harness has no
        such method or checkpoint. pictures: how many the split holds, so that no part of it is compared.
    presets: under which it may have been scored, names apart by spaces: all settings of a comparable row are those of
        one of them. settings: what they came to for the method of the figure, `key=value …`.
    rule: how clusters were matched. miou: in percent, as printed. source: where it is printed. note: how it was scored,
        and how it was read. otherwise: why no row of this harness is scored as it was, "" where there may be some.
    """

    method: str
    dataset: str
    split: str
    pictures: int
    protocol: str
    presets: str
    settings: str
    rule: str
    miou: float
    source: str
    note: str
    otherwise: str = ""

    def is_of(self, row: Row) -> bool:
        """Whether it is of the row's protocol, on the whole of the same split."""
        data = row.run.get("dataset") or {}
        whole = [data.get(key) for key in ("name", "split", "pictures")] == [self.dataset, self.split, self.pictures]
        return whole and row.run.get("protocol") == self.protocol

    def fits(self, row: Row, cards: CardLookup = registered) -> bool:
        """Whether a row was scored as this figure was.

        The same protocol on the whole of the same data, all settings as in one of the presets as they are today and
        come to the same (pixels or objects, the background, K), the same rule, and the map that the method reads when
        nothing is said.
        """
        return (
            not self.otherwise
            and self.is_of(row)
            and dict(row.headline) == {"rule": self.rule, "metric": "miou"}
            and self._has_settings_of(row, cards)
            and row.run.get("tap") == _paper_tap(row, cards)
        )

    def _has_settings_of(self, row: Row, cards: CardLookup) -> bool:
        card, found = cards("protocols", self.protocol), settled(row)
        preset = current_preset(row, card)
        if card is None or preset is None or preset.name not in self.presets.split():
            return False
        wanted = dict(pair.split("=", 1) for pair in self.settings.split())
        return (
            row.run.get("preset_version") == preset.version
            and not changed(row, card, preset).keys() - _ANY_WILL_DO
            and all(str(found.get(key)) == value for key, value in wanted.items())
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

    Each run that was scored as a figure was gets that figure, under the method of a row where one has that name and
    reads the map that papers read. A stand-in has the run of its neighbour, an entry `published` with the source, no
    seeds and one figure.
    """
    names = {id(row): _name(row, cards) for row in rows}
    found: dict[str, Row] = {}
    for figure in figures() if published is None else published:
        fitting = [row for row in rows if figure.fits(row, cards)]
        namesake = next((row for row in [*fitting, *rows] if names[id(row)] == figure.method), None)
        for row in fitting:
            stand_in = _stand_in(figure, row, namesake, cards)
            found[stand_in.key] = stand_in
    return list(found.values())


def left_out(
    rows: Sequence[Row], published: Sequence[Figure] | None = None, *, cards: CardLookup = registered
) -> list[str]:
    """Sentences on the figures of the rows' protocols and data that stand beside none of them, and why."""
    counts: dict[tuple[str, str], int] = {}
    for figure in figures() if published is None else published:
        of_them = [row for row in rows if figure.is_of(row)]
        if of_them and not any(figure.fits(row, cards) for row in of_them):
            why = figure.otherwise or "scored under other settings than these rows"
            counts[figure.protocol, why] = counts.get((figure.protocol, why), 0) + 1
    return [
        f"{number} published {protocol} figure{'s'[: number > 1]} left out: {why}"
        for (protocol, why), number in counts.items()
    ]


def _name(row: Row, cards: CardLookup) -> str:
    """The row's method as a table names it; with its map, where that is not the one papers read."""
    run = {**row.run, "tap": None} if row.run.get("tap") == _paper_tap(row, cards) else row.run
    return method_text(run, cards("methods", family(row)))


def _paper_tap(row: Row, cards: CardLookup) -> Any:
    """The map that a row reads whose preset and method are left as they are: a paper's figure is of that."""
    preset = current_preset(row, cards("protocols", str(row.run.get("protocol"))))
    named = preset.values().get("tap") if preset else ""
    return named or usual_tap(row, cards) or row.run.get("tap")


def _stand_in(figure: Figure, neighbour: Row, namesake: Row | None, cards: CardLookup) -> Row:
    """namesake: a row of the method that the figure is of."""
    method = {key: namesake.run[key] for key in METHOD_KEYS if key in namesake.run} if namesake else {}
    others = {key: value for key, value in neighbour.run.items() if key not in METHOD_KEYS}
    run = {"method": figure.method, **method, **others, "published": figure.source}
    if namesake:
        run["tap"] = _paper_tap(replace(namesake, run=run), cards)
        card = cards("methods", family(namesake))
        run |= {"method_version": card.version_of(str(run["tap"] or ""))} if card else {}
    return replace(
        neighbour,
        run=run,
        per_seed=(),
        mean={"scores": {neighbour.headline["rule"]: {neighbour.headline["metric"]: figure.miou / 100}}},
        std={},
        dropped=0,
        notes=(f"{figure.source}: {figure.note}",),
        path=None,
    )
