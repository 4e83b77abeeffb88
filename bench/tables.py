"""Tables out of rows: which figures stand beside each other, and under which names (`bench.formats` writes them).

A row belongs to one place on each of five axes: its method (with checkpoint, options and tap), its protocol (with
preset and settings), its number of clusters, its data set, and its origin (a run, or a paper: `bench.published`). Rows
that differ in anything but seeds differ on one of them, so nothing is ever averaged or hidden: what differs is added to
a label, the rest is said below the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.contracts import Scope
from bench.errors import InputError, SettingError
from bench.metrics import AS_PREDICTED, SCORING
from bench.records import MethodCard, Preset, ProtocolCard
from bench.settings import apply
from bench.store import Row

__all__ = [
    "AS_PREDICTED",
    "AXES",
    "METHOD_KEYS",
    "RULES",
    "CardLookup",
    "Cell",
    "Label",
    "Table",
    "build",
    "canonical",
    "changed",
    "current_preset",
    "digest",
    "family",
    "is_published",
    "method_text",
    "one_line",
    "percent",
    "registered",
    "settled",
    "tell_apart",
    "usual_tap",
    "with_spread",
]

AXES = ("method", "dataset", "protocol", "clusters", "origin")
"""What can be laid along the rows and the columns of a table."""

UPPER_BOUNDS = frozenset({"oracle"})
"""Methods that see the labels: shown last and in italics, outside the ranking of best and second."""

CardLookup = Callable[[str, str], Any]
"""(kind, name) -> the registered card, or None."""

METHOD_KEYS = ("method", "method_version", "checkpoint", "options", "tap")
"""What of a run says which method it is of."""
_BESIDE = ("train", "masks")
"""What of a run's data set is a matter of its protocol: what is read beside the pictures that are scored."""

_LONG = 24
"""Characters of text that a label shows whole."""

_UNSHOWN_CHECKPOINTS = {"", "none", "pretrained"}
_SETTINGS_OF_OTHER_AXES = {"clusters", "tap", "reads"}
_A_ROW_EACH = {"fractions"}
"""Settings of which a preset has several values and a row has one, which its label names."""

_METRICS = {
    "miou": "mIoU (absent classes count 0)",
    "miou_present": "mIoU over the classes with a pixel in the labels",
    "miou_occurring": "mIoU over the classes with a pixel in labels or predictions",
    "pixel_accuracy": "pixel accuracy",
    "class_accuracy": "mean class accuracy",
    "foreground_miou": "mIoU without background",
}
RULES = {
    "one_to_one_iou": "one-to-one by IoU",
    "one_to_one_pixels": "one-to-one by pixels",
    "many_to_one_iou": "many-to-one by IoU",
    "many_to_one_pixels": "many-to-one by pixels",
}
"""The matching rules, and how a table names them."""

_LEFTOVERS = {"background": "leftover clusters are background", "dropped": "leftover clusters are not scored"}


@dataclass(frozen=True, slots=True)
class Label:
    """The name of a table's row or column, and the numbers of its footnotes."""

    text: str
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A headline figure.

    mean, std: in [0, 1]; std is None for one seed. rank: 1 best, 2 second among the methods compared, 0 neither.
    upper_bound: it is of a method that sees the labels. marks: numbers of its footnotes.
    """

    row: Row
    mean: float | None
    std: float | None
    rank: int = 0
    upper_bound: bool = False
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures in their places. cells: by (row, column), absent where nothing was computed.

    notes: footnotes; mark n is `notes[n]`. footer: sentences that hold for the whole table.
    """

    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: Mapping[tuple[int, int], Cell]
    notes: tuple[str, ...]
    footer: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row lies on an axis: `identity` is equal for what is the same, `order` sorts, `text` names."""

    order: int
    identity: str
    text: str


def registered(kind: str, name: str) -> Any:
    """The card of a method or protocol, None where it is not (or no longer) registered."""
    try:
        return registry.card(kind, name)
    except InputError:
        return None


def build(
    rows: Sequence[Row],
    *,
    index: Sequence[str] = ("method",),
    columns: Sequence[str] = ("dataset", "protocol", "clusters", "origin"),
    cards: CardLookup = registered,
) -> Table:
    """Lay out the headline figures of rows.

    index, columns: the axes (see `AXES`) along the rows and the columns; axes not named join the columns.
    cards: where defaults are looked up: a default checkpoint or tap is left out of a label, and settings that differ
        from their preset get a footnote.
    Raises SettingError for an unknown or repeated axis, InputError when there are no rows.
    """
    index, columns = _axes(index, columns)
    if not rows:
        raise InputError("there are no rows to show: compute some with `bench eval`, or name their folder: --results")
    places = {
        "method": _method_places(rows, cards),
        "dataset": _dataset_places(rows, alone=["dataset"] in (index, columns)),
        "protocol": _protocol_places(rows),
        "clusters": _cluster_places(rows),
        "origin": _origin_places(rows),
    }
    at_row, row_texts = _lay([places[axis] for axis in index])
    at_column, column_texts = _lay([places[axis] for axis in columns])
    compared = _compared(rows, places)
    ranks = _ranks(rows, compared)
    remarks = _remarks(rows, compared, [place.text for place in places["protocol"]], cards)
    of_figures = {text for row in rows for text in _floor_remarks(row)}  # a mark at the figure, also where all have it
    lifted = {
        column: _shared(
            [[t for t in remarks[i] if t not in of_figures] for i, at in enumerate(at_column) if at == column]
        )
        for column in at_column
    }
    notes = list(dict.fromkeys(text for column in sorted(lifted) for text in lifted[column]))
    cells = {}
    for i in sorted(range(len(rows)), key=lambda i: (at_row[i], at_column[i])):
        own = [text for text in remarks[i] if text not in lifted[at_column[i]]]
        notes += [text for text in dict.fromkeys(own) if text not in notes]
        cells[at_row[i], at_column[i]] = Cell(
            row=rows[i],
            mean=rows[i].headline_mean,
            std=rows[i].headline_std,
            rank=ranks.get(i, 0),
            upper_bound=_is_upper_bound(rows[i]),
            marks=_marks(own, notes),
        )
    return Table(
        rows=tuple(Label(text) for text in row_texts),
        columns=tuple(Label(text, _marks(lifted[column], notes)) for column, text in enumerate(column_texts)),
        cells=cells,
        notes=tuple(notes),
        footer=tuple(_footer(rows, places)),
    )


def _axes(index: Sequence[str], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    named = [*index, *columns]
    for axis in named:
        if axis not in AXES:
            raise SettingError(f"a table has no axis {axis!r}; it has {', '.join(AXES)}.{registry.near(axis, AXES)}")
        if named.count(axis) > 1:
            raise SettingError(f"the axis {axis!r} is named twice; name it once, in --rows or in --columns")
    index, columns = list(index), [*columns, *(axis for axis in AXES if axis not in named)]
    if not index or not columns:
        raise SettingError(f"all axes are on one side; leave one of {', '.join(AXES)} to the other (--rows, --columns)")
    return index, columns


def _lay(places: Sequence[Sequence[_Place]]) -> tuple[list[int], list[str]]:
    """The position of every row along axes laid side by side, and the text of every position."""
    combined = [tuple(axis[i] for axis in places) for i in range(len(places[0]))] if places else []
    order = {tuple(place.identity for place in at): tuple(place.order for place in at) for at in combined}
    positions = {identity: n for n, identity in enumerate(sorted(order, key=lambda identity: order[identity]))}
    at_position = [positions[tuple(place.identity for place in at)] for at in combined]
    texts = [""] * len(positions)
    for position, at in zip(at_position, combined, strict=True):
        texts[position] = " ".join(place.text for place in at if place.text)
    # what no name tells apart is told apart by a digest: two places never look like one
    return at_position, tell_apart(texts, [digest(identity) for identity in positions])


def _places(identities: Sequence[Any], texts: Sequence[str], order: Callable[[int], Any] | None = None) -> list[_Place]:
    """Places in the order of `order`(row number), among equals in order of first appearance."""
    keys = [canonical(identity) for identity in identities]
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    ranked = sorted(first.values(), key=lambda i: (order(i), i) if order else i)
    position = {keys[i]: n for n, i in enumerate(ranked)}
    return [_Place(position[key], key, text) for key, text in zip(keys, texts, strict=True)]


def _method_places(rows: Sequence[Row], cards: CardLookup) -> list[_Place]:
    runs = [_with_usual_tap(row, cards) for row in rows]
    reads = [str((row.run.get("settings") or {}).get("reads") or "") for row in rows]
    versions = ["" if _is_of_today(row, cards) else f"v{row.run.get('method_version')}" for row in rows]
    identities = [
        {key: run.get(key) for key in METHOD_KEYS} | {"method_version": version, "reads": read}
        for run, version, read in zip(runs, versions, reads, strict=True)
    ]
    texts = [method_text(run, cards("methods", family(row))) for run, row in zip(runs, rows, strict=True)]
    options = [row.run.get("options") or {} for row in rows]
    checkpoints = [row.run.get("checkpoint") or {} for row in rows]
    texts = tell_apart(texts, [str(run.get("tap") or "") for run in runs])
    texts = tell_apart(texts, [f"reads={read}" if read else "" for read in reads])
    texts = tell_apart(texts, _differences(texts, options))
    texts = tell_apart(texts, [_checkpoint_text(checkpoint) for checkpoint in checkpoints])
    texts = tell_apart(texts, versions)
    return _places(identities, texts, lambda i: _is_upper_bound(rows[i]))


def _is_of_today(row: Row, cards: CardLookup) -> bool:
    """Whether a row has the version that its method gives the row's map: the maps of one line may have several."""
    card = cards("methods", family(row))
    return bool(card) and row.run.get("method_version") == card.version_of(str(row.run.get("tap") or ""))


def _with_usual_tap(row: Row, cards: CardLookup) -> Mapping[str, Any]:
    """The run, its map named as the default one where it is what this protocol reads of the method by default.

    So a method whose probe reads another map than its clustering has one line.
    """
    method, tap = cards("methods", family(row)), row.run.get("tap")
    usual = usual_tap(row, cards)
    if not tap or not method or usual in ("", method.default_tap):
        return row.run
    return {**row.run, "tap": method.default_tap if tap == usual else f"{tap} for {row.run['protocol']}"}


def usual_tap(row: Row, cards: CardLookup) -> str:
    """The map that the row's protocol reads of its method where nothing is said; "" where that is not known."""
    method, protocol = cards("methods", family(row)), cards("protocols", str(row.run.get("protocol")))
    return (method.tap_for(protocol) or method.default_tap) if method and protocol else ""


def method_text(run: Mapping[str, Any], card: MethodCard | None) -> str:
    """`swav`, `swav@random`, `swav@800ep layer3`, `noise width=64`: the method, and what is not its default."""
    parts = [run["method"]]
    checkpoint = (run.get("checkpoint") or {}).get("name", "")
    default = card.checkpoints[0].name if card and card.checkpoints else ""
    if checkpoint not in _UNSHOWN_CHECKPOINTS | {default}:
        parts[0] += f"@{checkpoint}"
    if card and card.default_tap and run.get("tap") not in (None, "", card.default_tap):
        parts.append(run["tap"])
    defaults = _defaults(card.options) if card else {}
    options = run.get("options") or {}
    changed = [name for name in options if name in defaults and options[name] != defaults[name]]
    return " ".join([*parts, *(f"{name}={_short(options[name])}" for name in changed)])


def _checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    for digest in ("sha256", "weights"):  # `weights`: of a user's factory, which names no file
        if checkpoint.get(digest):
            return str(checkpoint[digest])[:8]
    return f"seed={checkpoint['seed']}" if "seed" in checkpoint else ""


def _dataset_places(rows: Sequence[Row], *, alone: bool) -> list[_Place]:
    data = [_scored_data(row) for row in rows]
    if len({canonical(d) for d in data}) == 1 and not alone:  # the footer names it
        return _places(data, [""] * len(rows))
    return _places(data, _dataset_texts(data))


def _scored_data(row: Row) -> dict[str, Any]:
    return {key: value for key, value in (row.run.get("dataset") or {}).items() if key not in _BESIDE}


def _dataset_texts(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of data sets, with as much of split, limit, size and content as it takes to tell them apart."""
    texts = [str(d.get("name", "")) for d in data]
    texts = tell_apart(texts, [str(d.get("split", "")) for d in data])
    texts = tell_apart(texts, [f"limit={d['limit']}" if d.get("limit") else "" for d in data])
    texts = tell_apart(texts, [f"{d.get('pictures')} pictures" for d in data])
    texts = tell_apart(texts, [f"data {str(d.get('fingerprint'))[:8]}" for d in data])
    return tell_apart(texts, _differences(texts, data))


def _protocol_places(rows: Sequence[Row]) -> list[_Place]:
    """Everything that is neither method, nor data, nor number of clusters: what a later version adds to a run, too."""
    others = (*METHOD_KEYS, "dataset", "published")
    identities = [{k: v for k, v in row.run.items() if k not in others} for row in rows]
    settings = [_protocol_settings(row) for row in rows]
    identities = [identity | {"settings": s} for identity, s in zip(identities, settings, strict=True)]
    for row, identity in zip(rows, identities, strict=True):
        identity |= {key: value for key, value in (row.run.get("dataset") or {}).items() if key in _BESIDE}
    presets = [f"{i['protocol']}:{i.get('preset')}" for i in identities]
    texts = presets if len({i.get("preset") for i in identities}) > 1 else [i["protocol"] for i in identities]
    texts = tell_apart(texts, [f"v{i.get('preset_version')}" for i in identities])
    for key in sorted(_A_ROW_EACH):
        each = [" ".join(map(str, own.get(key) or ())) for own in settings]
        texts = [f"{text} {own}".rstrip() for text, own in zip(texts, each, strict=True)]
    texts = tell_apart(texts, _differences(texts, settings))
    for key in ("dtype", "precision"):
        if len({canonical(i.get(key)) for i in identities}) > 1:
            texts = [f"{text} {i.get(key)}" for text, i in zip(texts, identities, strict=True)]
    texts = tell_apart(texts, _differences(texts, identities))
    return _places(identities, texts)


def _protocol_settings(row: Row) -> dict[str, Any]:
    settings = row.run.get("settings") or {}
    # the feature dtype has its own entry in the run
    hidden = _SETTINGS_OF_OTHER_AXES | ({"dtype"} if "dtype" in row.run else set())
    return {name: value for name, value in settings.items() if name not in hidden}


def _cluster_places(rows: Sequence[Row]) -> list[_Place]:
    clusters = [(row.run.get("settings") or {}).get("clusters") for row in rows]
    texts = ["" if k is None else f"K={_short(k)}" for k in clusters]
    return _places(clusters, texts, lambda i: clusters[i] if isinstance(clusters[i], int) else -1)


def _origin_places(rows: Sequence[Row]) -> list[_Place]:
    published = [is_published(row) for row in rows]
    return _places(published, ["published" if paper else "" for paper in published], lambda i: published[i])


def is_published(row: Row) -> bool:
    """Whether a row stands for a figure of a paper (see `bench.published`)."""
    return "published" in row.run


def tell_apart(texts: Sequence[str], facets: Sequence[str]) -> list[str]:
    """Add a facet to those texts that are equal although the facet differs."""
    pairs = list(zip(texts, facets, strict=True))
    ambiguous = {text for text in texts if len({facet for other, facet in pairs if other == text}) > 1}
    return [f"{text} {facet}".rstrip() if text in ambiguous else text for text, facet in pairs]


def _differences(groups: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """For every record `key=value` of the entries in which the records of its group are not all alike.

    `auto` is left out: it is what a reader takes for granted, and tells from other values by its absence.
    """
    members: dict[str, list[Mapping[str, Any]]] = {}
    for group, record in zip(groups, records, strict=True):
        members.setdefault(group, []).append(record)
    keys = {
        group: [k for k in dict.fromkeys(k for r in found for k in r) if len({canonical(r.get(k)) for r in found}) > 1]
        for group, found in members.items()
    }
    return [
        " ".join(f"{key}={_short(record.get(key))}" for key in keys[group] if record.get(key) != "auto")
        for group, record in zip(groups, records, strict=True)
    ]


def _compared(rows: Sequence[Row], places: Mapping[str, Sequence[_Place]]) -> list[tuple[str, ...]]:
    """For every row what its figure stands beside in every layout: all but the method."""
    return [tuple(places[axis][i].identity for axis in AXES if axis != "method") for i in range(len(rows))]


def _terms(row: Row) -> dict[str, str]:
    """What rows may differ in that stand beside each other: they are not ranked together then, and it is said."""
    return {"headline": _headline_text(row), "effort": _effort_text(row), "scoring": str(row.scoring)}


_SAID = {"headline", "effort"}
"""Terms that are said of all rows where they differ; of the scoring it is said of the older rows alone."""


def _effort_text(row: Row) -> str:
    """How hard K-means tried, where rows of before left that to the unit; "" where it stands in the settings."""
    if (row.run.get("settings") or {}).get("restarts") != 0:
        return ""
    return "ten starts of K-means" if any("objects" in entry for entry in row.per_seed) else "one start of K-means"


def _ranks(rows: Sequence[Row], compared: Sequence[Any]) -> dict[int, int]:
    """Row number -> 1 (best) or 2 (second), by the figures as shown: what looks equal ranks equal."""
    shown: dict[Any, dict[int, str]] = {}
    for i, row in enumerate(rows):
        if row.headline_mean is not None and not (_is_upper_bound(row) or is_published(row)):
            group = (compared[i], *_terms(row).values())
            shown.setdefault(group, {})[i] = percent(row.headline_mean)
    ranks = {}
    for group_figures in shown.values():
        if len(group_figures) < 2:
            continue
        best = sorted(set(group_figures.values()), key=float, reverse=True)[:2]
        ranks.update({i: best.index(figure) + 1 for i, figure in group_figures.items() if figure in best})
    return ranks


def _remarks(rows: Sequence[Row], compared: Sequence[Any], labels: Sequence[str], cards: CardLookup) -> list[list[str]]:
    """For every row the sentences that its figure must not be read without. labels: of its protocol."""
    usual = _usual_seeds(rows)
    terms: dict[Any, set[str]] = {}
    for row, group in zip(rows, compared, strict=True):
        for term, text in ({} if is_published(row) else _terms(row)).items():
            terms.setdefault((group, term), set()).add(text)
    remarks = []
    for row, group, label in zip(rows, compared, labels, strict=True):
        if is_published(row):
            remarks.append([one_line(text) for text in row.notes])
            continue
        found = _preset_remarks(row, cards("protocols", str(row.run.get("protocol"))), label)
        found += list(row.notes)
        found += [f"{_count(row.dropped, 'picture')} could not be scored"] if row.dropped else []
        found += [_count(len(row.seeds), "seed")] if len(row.seeds) != usual else []
        found += [text for term, text in _terms(row).items() if text and term in _SAID and len(terms[group, term]) > 1]
        found += [*_floor_remarks(row), *_missing_remarks(row)]
        remarks.append([one_line(text) for text in found])
    return remarks


def _floor_remarks(row: Row) -> list[str]:
    """That a figure is no better than a floor."""
    if not row.near_floor or row.floor is None:
        return []
    name, mean, sd = row.floor
    if name == "constant":
        return [f"not above the floor constant, {percent(mean)}"]
    return [f"not above the floor {name}, {with_spread(mean, sd)} (its mean + 2 standard deviations)"]


def _missing_remarks(row: Row) -> list[str]:
    """Why held-out matching or a floor is empty."""
    old = [f"scored by version {row.scoring}, now {SCORING}: --again scores it anew"] if row.scoring < SCORING else []
    matched = row.headline["rule"] != AS_PREDICTED
    reasons: dict[str, list[str]] = {}
    for part in ("held_out", "null", "exchanged"):
        note = next((entry[f"{part}_note"] for entry in row.per_seed if entry.get(f"{part}_note")), "")
        if note and row.figure(part) is None and (matched or part != "held_out"):
            reasons.setdefault(note, []).append(part.replace("_", " "))
    return [*old, *(f"no {', '.join(parts)}: {note}" for note, parts in reasons.items())]


def settled(row: Row) -> dict[str, Any]:
    """The settings of a row; what follows from the method (`auto`) as what it came to, where the row says so."""
    found: Mapping[str, Any] = next((entry["settled"] for entry in row.per_seed if entry.get("settled")), {})
    return {**(row.run.get("settings") or {}), **found}


def current_preset(row: Row, card: ProtocolCard | None) -> Preset | None:
    """A row's preset as it is today, None where it is not registered."""
    return next((p for p in card.presets if p.name == row.run.get("preset")), None) if card else None


def changed(row: Row, card: ProtocolCard, preset: Preset) -> dict[str, tuple[Any, Any]]:
    """The settings in which a row is not what its preset makes today: name -> (the row's value, the preset's).

    What lies on another axis of a table (K, the map that is read) is left out.
    """
    asked, made = _of_preset(row, card, preset)
    return {
        key: (value, asked.get(key))
        for key, value in (row.run.get("settings") or {}).items()
        if key not in {"clusters", "tap"} | _A_ROW_EACH and canonical(value) != canonical(made.get(key))
    }


def _of_preset(row: Row, card: ProtocolCard, preset: Preset) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a preset for such a row: as the preset says them, and as a row would hold them.

    The protocol itself fills in what it settles before a row is made, on a processor.
    """
    data, settings = row.run.get("dataset") or {}, row.run.get("settings") or {}
    known = {field.name for field in dataclasses.fields(card.settings)}
    own = {key: settings[key] for key in known & {"clusters", *_A_ROW_EACH} if settings.get(key)}
    asked = made = apply(card.settings(), preset.values() | own, card.name)
    scope = Scope(
        classes=len(data.get("classes") or ()),
        device="cpu",
        background=data.get("background") is not None,
        own_clusters=own.get("clusters") if settled(row).get("unit") == "network" else None,
    )
    if card.expand:
        with contextlib.suppress(InputError):  # what cannot be made here, without faiss, was made elsewhere
            made = registry.load(card.expand)(asked, scope)[0].settings
    return dataclasses.asdict(asked), dataclasses.asdict(made)


def _preset_remarks(row: Row, card: ProtocolCard | None, label: str) -> list[str]:
    """Where a row is not what its protocol and its preset make today, and how it was computed.

    A value in the place of `auto` is not said again where the label says it.
    """
    found = [f"computed in {row.run['precision']}"] if row.run.get("precision", "fp32") != "fp32" else []
    preset = current_preset(row, card)
    if card is None or preset is None:
        return found
    name = f"{card.name}:{preset.name}"
    for what, then, now in (
        (card.name, row.run.get("protocol_version"), card.version),
        (name, row.run.get("preset_version"), preset.version),
    ):
        found += [f"{what} was at version {then}; it is at {now} now"] if then not in (None, now) else []
    for key, (value, usual) in changed(row, card, preset).items():
        text = f"{key}={_short(value)}"
        found += [] if usual == "auto" and text in label.split() else [f"{text} ({name}: {_short(usual)})"]
    return found


def _usual_seeds(rows: Sequence[Row]) -> int:
    """The number of seeds that most rows have (among equals the larger)."""
    seeds = [len(row.seeds) for row in rows if not is_published(row)]
    return max(seeds, key=lambda n: (seeds.count(n), n))


def _footer(rows: Sequence[Row], places: Mapping[str, Sequence[_Place]]) -> list[str]:
    usual = _usual_seeds(rows)
    paper = any(map(is_published, rows))
    spread = "" if usual == 1 else "mean ± sample standard deviation over "
    unless = " unless noted" if any(len(row.seeds) not in (0, usual) for row in rows) else ""
    metric = _by_protocol([_metric_text(row) for row in rows], places)
    matching = _by_protocol([_rule_text(row.headline["rule"]) for row in rows], places)
    return [
        f"{metric}; in percent, {spread}{_count(usual, 'seed')}{unless}.",
        *([f"Clusters are matched to classes with the labels they are scored on: {matching}."] if matching else []),
        "Every pixel of the pictures' original size is scored, void left out.",
        *_data_sentences(rows),
        *(
            ["Published figures are not runs of this harness; the footnotes say where each is printed."]
            if paper
            else []
        ),
    ]


def _by_protocol(texts: Sequence[str], places: Mapping[str, Sequence[_Place]]) -> str:
    """A text that all rows share as it is; else each text and the protocols (with K where one has several) it is of."""
    if len(set(texts)) == 1:
        return texts[0]
    owners = [place.text for place in places["protocol"]]
    by_k = [f"{owner} {clusters.text}".strip() for owner, clusters in zip(owners, places["clusters"], strict=True)]
    pairs = set(zip(owners, texts, strict=True))
    several = {owner for owner in owners if len([text for other, text in pairs if other == owner]) > 1}
    named: dict[str, list[str]] = {}
    for text, owner, with_k in zip(texts, owners, by_k, strict=True):
        named.setdefault(text, []).append(with_k if owner in several else owner)
    return "; ".join(f"{text} ({', '.join(dict.fromkeys(found))})" for text, found in named.items() if text)


def _headline_text(row: Row) -> str:
    return ", ".join(text for text in (_metric_text(row), _rule_text(row.headline["rule"])) if text)


def _metric_text(row: Row) -> str:
    return _METRICS.get(row.headline["metric"], row.headline["metric"])


def _rule_text(rule: str) -> str:
    """How a table names a rule; nothing where ids are classes and nothing is matched."""
    if rule == AS_PREDICTED:
        return ""
    name, _, leftover = rule.partition(":")
    return RULES.get(name, name) + (f" ({_LEFTOVERS.get(leftover, leftover)})" if leftover else "")


def _data_sentences(rows: Sequence[Row]) -> list[str]:
    data = list({canonical(_scored_data(row)): _scored_data(row) for row in rows}.values())
    sentences = []
    for d, name in zip(data, _dataset_texts(data), strict=True):
        facts = [f"split {d['split']}"] if d.get("split") else []
        facts += [_count(d.get("pictures", 0), "picture")]
        facts += [f"limited to {d['limit']}"] if d.get("limit") else []
        facts += [_count(len(d["classes"]), "class")] if d.get("classes") else []
        sentences.append(f"Data: {name} ({', '.join(facts)}).")
    return sentences


def _shared(remarks: Sequence[Sequence[str]]) -> list[str]:
    """The sentences that all of several figures have."""
    return [text for text in dict.fromkeys(remarks[0]) if all(text in others for others in remarks)]


def _marks(remarks: Sequence[str], notes: Sequence[str]) -> tuple[int, ...]:
    return tuple(sorted({notes.index(text) for text in remarks}))


def family(row: Row) -> str:
    """The registered name of a row's method, without what follows a colon."""
    return str(row.run["method"]).partition(":")[0]


def _is_upper_bound(row: Row) -> bool:
    return family(row) in UPPER_BOUNDS


def _defaults(of: type) -> dict[str, Any]:
    """The defaults of a dataclass type, as JSON gives them back."""
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(of) if f.default is not dataclasses.MISSING
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def canonical(value: Any) -> str:
    """Plain data as JSON with sorted keys: equal for what is the same."""
    return json.dumps(value, sort_keys=True, default=str)


def digest(value: Any) -> str:
    """8 hex digits that change with plain data."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def _short(value: Any) -> str:
    """A value in a label: numbers and lists as they are typed, long text by its ends and a digest that tells it apart.

    Of what a mapping holds the values are shown, of a fingerprint its beginning.
    """
    if isinstance(value, Mapping):
        return ":".join(_short(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return ",".join(_short(entry) for entry in value) or "none"
    text = value if isinstance(value, str) else canonical(value)
    if re.fullmatch("[0-9a-f]{32,}", text):
        return text[:8]
    if len(text) > _LONG:
        return f"{text[: _LONG // 2]}…{text[-(_LONG // 2) :]}#{digest(text)}"
    return text or "none"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def percent(figure: float) -> str:
    """A figure in [0, 1] as it is shown and ranked: in percent, one decimal."""
    return f"{100 * figure:.1f}"


def with_spread(mean: float | None, sd: float | None) -> str:
    """A figure and its standard deviation as they are shown; "" where there is none."""
    if mean is None:
        return ""
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def one_line(text: str) -> str:
    """Text without line breaks and control characters, which a terminal or a table would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
