"""Rows that differ in what decides figures are told apart in every format, by a name or by a footnote."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import random
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from bench import formats, registry
from bench.contracts import Scope
from bench.errors import SettingError
from bench.plan import ProtocolChoice
from bench.records import Preset, ProtocolCard
from bench.settings import apply, deciding
from bench.store import Row
from bench.tables import Table, build

PRESETS = [
    pytest.param(card, preset, id=f"{name}:{preset.name}")
    for name, card in registry.cards("protocols").items()
    for preset in card.presets
]
TEXTS = {
    "size": "448x320",
    "foreground": "masks:clean",
    "head": "row:0123456789abcdef",
    "network": "row:0123456789abcdef",
    "drop": "10/60",
    "names": "lists/of/the/pictures/that/were/kept/of/the/first/draw.txt",
    "names_sha256": "ab" * 32,
}
DATA = {"name": "tiny", "split": "val", "fingerprint": "ab" * 32, "pictures": 4, "classes": ["a", "b"], "limit": None}


def stored(card: ProtocolCard, preset: Preset, changes: dict[str, Any]) -> Row | None:
    """A row as `bench eval` stores it; None for settings that it refuses."""
    values = preset.values() | ({"clusters": 2} if "clusters" in typing.get_type_hints(card.settings) else {})
    choice = ProtocolChoice(
        card=card,
        preset=preset,
        settings=apply(card.settings(), values | changes, card.name),
        explicit=frozenset(changes),
    )
    try:
        variant = choice.variants(Scope(classes=2, device="cpu", pictures=4))[0]
    except SettingError:
        return None
    settings = deciding(variant.settings)
    del settings["tap"]
    run = {
        "method": "net",
        "method_version": 1,
        "options": {},
        "checkpoint": {"name": "none"},
        "tap": "layer4",
        "protocol": card.name,
        "protocol_version": card.version,
        "preset": preset.name,
        "preset_version": preset.version,
        "settings": json.loads(json.dumps(settings)),
        "dataset": DATA,
        "precision": "fp32",
    }
    return row_of(run, card.headline)


def as_it_is(card: ProtocolCard, preset: Preset) -> Row:
    row = stored(card, preset, {})
    assert row is not None
    return row


def row_of(run: dict[str, Any], rule: str = "one_to_one_iou", **entry: Any) -> Row:
    scores = {rule: {"miou": 0.4}}
    return Row.of(run, [{"seed": 0, "scores": scores, **entry}], headline={"rule": rule, "metric": "miou"})


def other_values(hint: Any, value: Any) -> Iterator[Any]:
    """Values of a setting's type that are not this one."""
    if typing.get_origin(hint) is typing.Literal:
        yield from (choice for choice in typing.get_args(hint) if choice != value)
    elif typing.get_origin(hint) is tuple:
        yield from ((*value, value[0]), (*value[:-1], value[-1] / 2)) if value else ()
    elif typing.get_args(hint):
        for one in typing.get_args(hint):
            yield from other_values(one, value)
    elif hint is bool:
        yield not value
    elif hint is int:
        yield from ((value if isinstance(value, int) else 1) + more for more in (2, 5))
    elif hint is float:
        yield from (value / 2, value / 4) if isinstance(value, int | float) and value else (0.25, 0.5)


def changes_of(card: ProtocolCard, preset: Preset) -> list[dict[str, Any]]:
    """Every setting changed on its own."""
    settings = apply(card.settings(), preset.values(), card.name)
    hints = typing.get_type_hints(card.settings)
    found: list[dict[str, Any]] = []
    for field in dataclasses.fields(card.settings):
        value = getattr(settings, field.name)
        texts = (
            [TEXTS[field.name]] if field.name in TEXTS else [f"{field.name} else"] if hints[field.name] is str else []
        )
        if field.name == "fractions":
            found += [{"fractions": (share,)} for share in ("2%", "50%")]
        elif field.name == "clusters":
            found += [{"clusters": (k,) if isinstance(value, tuple) else k} for k in (3, 4)]
        elif field.name != "tap" and field.metadata.get("decides", True):
            found += [{field.name: other} for other in (*other_values(hints[field.name], value), *texts)]
    return found


def places(table: Table, row: Row) -> tuple[Any, ...]:
    """All that a reader is told of a row: the names of its line and column, and the texts of its footnotes."""
    [(at, cell)] = [(at, cell) for at, cell in table.cells.items() if cell.row is row]
    line, column = table.rows[at[0]], table.columns[at[1]]
    marks = {*line.marks, *column.marks, *cell.marks}
    return line.text, column.text, tuple(sorted(table.notes[mark] for mark in marks))


def told_apart(one: Row, other: Row) -> bool:
    both = build([one, other])
    return len(both.cells) == 2 and places(both, one) != places(both, other)


@pytest.mark.parametrize(("card", "preset"), PRESETS)
def test_a_row_of_a_preset_as_it_is_has_no_footnote(card, preset):
    assert build([as_it_is(card, preset)]).notes == ()


@pytest.mark.parametrize(("card", "preset"), PRESETS)
def test_a_setting_that_was_changed_is_seen_in_a_table_of_that_row_alone(card, preset):
    base = as_it_is(card, preset)
    plain, seen = places(build([base]), base), 0
    for change in changes_of(card, preset):
        row = stored(card, preset, change)
        if row is not None and row.run != base.run:
            assert places(build([row]), row) != plain, change
            seen += 1
    assert seen > 5


@pytest.mark.parametrize(("card", "preset"), PRESETS)
def test_two_rows_with_other_settings_are_told_apart(card, preset):
    changes = [{}, *changes_of(card, preset)]
    draw = random.Random(0)
    changes += [draw.choice(changes) | draw.choice(changes) for _ in range(20)]
    rows = [(change, row) for change in changes if (row := stored(card, preset, change))]
    pairs = list(itertools.combinations(rows, 2))
    for (change, one), (other_change, other) in draw.sample(pairs, min(len(pairs), 150)):
        if one.run != other.run:
            assert told_apart(one, other), (change, other_change)


def test_all_of_a_protocols_settings_in_one_table_have_columns_of_their_own():
    for name, card in registry.cards("protocols").items():
        made = [stored(card, preset, change) for preset in card.presets for change in [{}, *changes_of(card, preset)]]
        rows = list({row.key: row for row in made if row}.values())
        table = build(rows)
        seen = {places(table, row) for row in rows}
        assert len(seen) == len(rows), name


# ------------------------------------------------------------------------------------------------ what else differs


RUN = {
    "method": "net",
    "method_version": 1,
    "options": {"width": 32, "mode": None},
    "checkpoint": {"name": "random", "seed": 0, "key": "model", "prefix": "q."},
    "tap": "layer4",
    "protocol": "linear",
    "protocol_version": 1,
    "preset": "paper",
    "preset_version": 2,
    "settings": {"size": "512", "lr": [0.1, 0.01, 0.001, 0.0003], "names": "", "reads": ""},
    "dataset": {**DATA, "background": 0, "train": {"split": "train", "fingerprint": "cd" * 32}},
    "precision": "fp32",
}


def leaves(run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in run.items():
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in leaves(value))
        else:
            yield (name,)


def mutated(path: tuple[str, ...], variant: int) -> dict[str, Any]:
    run = json.loads(json.dumps(RUN))
    inner = run
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = other_leaf(inner[path[-1]], variant)
    return dict(run)


def other_leaf(value: Any, variant: int) -> Any:
    if isinstance(value, str):
        return ("猫", "犬", f"{value}  x", f"{value} x", "a" * 60 + value, "a" * 61 + value)[variant]
    if isinstance(value, list):
        return [*value, value[-1] if variant % 2 else "c"] * (1 + variant // 2)
    return (None, 7, "seven", 8.5, True, [7])[variant] if value != 7 else 8


@pytest.mark.parametrize("path", list(leaves(RUN)), ids=".".join)
def test_whatever_differs_between_runs_is_seen_in_every_format(path):
    """Also where letters have no form in LaTeX, and spaces or the middle of a text are all that differ."""
    runs = list({json.dumps(run): run for run in (RUN, *(mutated(path, variant) for variant in range(6)))}.values())
    rows = [row_of(run, "as_predicted") for run in runs]
    table = build(rows)
    assert len({places(table, row) for row in rows}) == len(rows)
    for form in ("markdown", "latex", "html", "text"):
        text = formats.text(table, width=10_000) if form == "text" else formats.render(table, form)
        assert len(set(heads(text, form))) == len(table.rows) * len(table.columns), form
    lines = csv.DictReader(io.StringIO(formats.render(table, "csv")))
    told = {tuple(value for name, value in line.items() if name not in ("key", "notes")) for line in lines}
    assert len(told) == len(rows)


def heads(text: str, form: str) -> list[tuple[str, str]]:
    """The names of lines and columns of the first table of a text, each line with each column."""
    if form == "markdown":
        grid = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.split("\n\n")[0].split("\n")
        ]
        lines, columns = [line[0] for line in grid[2:]], grid[0][1:]
    elif form == "latex":
        body = text.split("\\toprule\n")[1].split("\n\\bottomrule")[0].removesuffix(r" \\").split(" \\\\\n")
        columns = body[0].split(" & ")[1:]
        lines = [line.removeprefix("\\midrule\n").split(" & ")[0] for line in body[1:]]
    elif form == "html":
        page = text.split("<caption")[1].split("</table>")[0]
        columns = re.findall(r'<th [^>]*class="col_heading[^>]*>(.*?)</th>', page)
        lines = re.findall(r'<th [^>]*class="row_heading[^>]*>(.*?)</th>', page)
    else:
        block = text.split("\n\n")[0].split("\n")
        rule = next(i for i, line in enumerate(block) if line.startswith("--"))
        ends = [match.span() for match in re.finditer("-+", block[rule])]
        columns = [" ".join(line[slice(*span)].strip() for line in block[:rule]) for span in ends[1:]]
        lines = [line[slice(*ends[0])].strip() for line in block[rule + 1 :]]
    return list(itertools.product(lines, columns))


# ------------------------------------------------------------------------------------------------ effort and scoring


def kmeans(preset: str, method: str, restarts: int | None = None, **entry: Any) -> Row:
    card = registry.card("protocols", "kmeans")
    run = as_it_is(card, next(one for one in card.presets if one.name == preset)).run
    effort = {} if restarts is None else {"restarts": restarts}
    return row_of({**run, "method": method, "settings": {**run["settings"], **effort}}, **entry)


def test_rows_of_another_effort_are_not_ranked_together():
    few, many = kmeans("native", "a", 1), kmeans("native", "b", 2)
    table = build([few, many])
    assert [label.text for label in table.columns] == ["kmeans restarts=1 K=2", "kmeans restarts=2 K=2"]
    assert {cell.rank for cell in table.cells.values()} == {0}
    released = build([many, kmeans("released-code", "c")])
    assert {cell.rank for cell in released.cells.values()} == {0}
    assert [label.text for label in released.columns] == ["kmeans:native K=2", "kmeans:released-code K=2"]


def test_rows_of_before_whose_unit_decided_the_effort_are_not_ranked_together():
    pixels, objects, also = kmeans("native", "a", 0), kmeans("native", "b", 0, objects=4.0), kmeans("native", "c", 0)
    table = build([pixels, objects, also])
    assert len(table.columns) == 1
    assert [cell.rank for _, cell in sorted(table.cells.items())] == [1, 0, 1]
    assert "one start of K-means" in places(table, pixels)[2]
    assert "ten starts of K-means" in places(table, objects)[2]
    assert "one start of K-means" not in build([pixels, also]).notes


def test_rows_of_another_scoring_are_not_ranked_together():
    new = [row_of(RUN | {"method": name}) for name in ("a", "b")]
    old = dataclasses.replace(row_of(RUN | {"method": "c"}), scoring=1)
    table = build([*new, old])
    assert [cell.rank for _, cell in sorted(table.cells.items())] == [1, 1, 0]
    assert "scored by version 1, now 2: --again scores it anew" in places(table, old)[2]
    assert not [note for note in places(table, new[0])[2] if "--again" in note]
