"""Figures of papers: what the file holds, and where a table puts them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bench import formats, registry
from bench.published import Figure, beside, figures
from bench.records import CheckpointCard, MethodCard
from bench.store import Row, Store
from bench.tables import build

VOC = {"name": "voc", "split": "val", "fingerprint": "ab", "pictures": 1449, "classes": ["a"] * 21, "limit": None}
CARDS = {
    "maskcontrast": MethodCard(
        name="maskcontrast",
        summary="",
        factory="",
        checkpoints=(CheckpointCard(name="sup", filename="a"), CheckpointCard(name="unsup", filename="b")),
    )
}


def cards(kind: str, name: str) -> Any:
    return CARDS.get(name) if kind == "methods" else None


def run_row(
    method: str, checkpoint: str = "none", *, k: int = 21, data: dict[str, Any] | None = None, **run: Any
) -> Row:
    whole = {
        "method": method,
        "checkpoint": {"name": checkpoint, "sha256": "cd" * 32},
        "tap": "x",
        "protocol": "kmeans",
        "preset": "paper",
        "settings": {"clusters": k},
        "dataset": VOC | (data or {}),
        **run,
    }
    per_seed = [{"seed": seed, "scores": {"one_to_one_iou": {"miou": 0.4 + seed / 100}}} for seed in range(2)]
    return Row.of(whole, per_seed, headline={"rule": "one_to_one_iou", "metric": "miou"})


def figure(method: str, miou: float, source: str = "a paper") -> Figure:
    return Figure(
        method=method, dataset="voc", split="val", pictures=1449, protocol="kmeans", settings="clusters=21", miou=miou,
        source=source, note="its note",
    )  # fmt: skip


PAPER = (figure("maskcontrast", 44.2), figure("maskcontrast@unsup", 35.0, source="b"), figure("Theirs (words)", 9.8))


def test_every_published_figure_is_usable():
    found = figures()
    assert len(found) > 40
    places = Counter((f.method, f.dataset, f.split, f.protocol, f.settings) for f in found)
    assert max(places.values()) == 1  # two in one place would hide one another
    protocols = {**{name: set() for name in ("linear", "finetune")}, **settings_of_protocols()}
    for f in found:
        assert f.dataset in registry.names("datasets")
        assert 0 < f.miou < 100
        assert f.source
        assert f.note
        keys = {pair.split("=")[0] for pair in f.settings.split()}
        assert keys <= protocols[f.protocol]


def settings_of_protocols() -> dict[str, set[str]]:
    return {name: set(card.settings.__dataclass_fields__) for name, card in registry.cards("protocols").items()}


def test_names_of_released_checkpoints_are_ours():
    methods = registry.cards("methods")
    for f in figures():
        name, _, checkpoint = f.method.partition("@")
        if name in methods and checkpoint:
            assert checkpoint in {one.name for one in methods[name].checkpoints}


def test_the_figures_of_the_supplement():
    """Table 1 of arXiv 2102.06191, the variant with supervised initialisation and supervised saliency."""
    found = {f.settings: f.miou for f in figures() if f.method == "maskcontrast" and "Table 1" in f.source}
    assert found == {f"clusters={k}": v for k, v in ((21, 44.2), (50, 51.4), (100, 52.5), (200, 53.6), (500, 57.0))}


def test_published_figures_stand_beside_ours_under_the_same_method():
    rows = [run_row("maskcontrast", "sup"), run_row("maskcontrast", "unsup"), run_row("oracle")]
    table = build([*rows, *beside(rows, PAPER, cards=cards)], cards=cards)
    assert [label.text for label in table.columns] == ["kmeans K=21", "kmeans K=21 published"]
    assert [label.text for label in table.rows] == ["maskcontrast", "maskcontrast@unsup", "Theirs (words)", "oracle"]
    shown = {(r, c): cell.mean for (r, c), cell in table.cells.items()}
    assert shown == pytest.approx(
        {(0, 0): 0.405, (1, 0): 0.405, (3, 0): 0.405, (0, 1): 0.442, (1, 1): 0.35, (2, 1): 0.098}
    )
    assert {cell.rank for (_, c), cell in table.cells.items() if c == 1} == {0}
    assert [table.notes[table.cells[r, 1].marks[0]] for r in range(3)] == [
        "a paper: its note", "b: its note", "a paper: its note",
    ]  # fmt: skip
    assert "mean ± sample standard deviation over 2 seeds." in table.footer[0]
    assert "not runs of this harness" in table.footer[-1]


@pytest.mark.parametrize(
    "other",
    [
        run_row("swav", k=50),
        run_row("swav", protocol="overclustering"),
        run_row("swav", data={"name": "shapes"}),
        run_row("swav", data={"split": "train"}),
        run_row("swav", data={"limit": 10, "pictures": 10}),
    ],
)
def test_what_is_not_comparable_gets_no_figure(other):
    assert beside([other], PAPER, cards=cards) == []


def test_one_figure_for_many_methods_and_each_of_several_columns():
    rows = [run_row("swav"), run_row("moco_v2"), run_row("swav", preset="native")]
    papers = beside(rows, PAPER, cards=cards)
    assert len(papers) == 2 * len(PAPER)
    table = build([*rows, *papers], cards=cards)
    assert [label.text for label in table.columns] == [
        "kmeans:paper K=21", "kmeans:paper K=21 published", "kmeans:native K=21", "kmeans:native K=21 published",
    ]  # fmt: skip
    lone = build([*rows, *papers], index=("protocol", "origin"), columns=("method",), cards=cards)
    assert [label.text for label in lone.rows][:2] == ["kmeans:paper", "kmeans:paper published"]


def test_every_format_marks_them():
    rows = [run_row("maskcontrast", "sup")]
    table = build([*rows, *beside(rows, PAPER, cards=cards)], cards=cards)
    for form in ("markdown", "latex", "html"):
        text = formats.render(table, form)
        assert "published" in text
        assert "44.2" in text
        assert "a paper: its note" in text
    lines = list(csv.DictReader(io.StringIO(formats.render(table, "csv"))))
    papers = [line for line in lines if line["published"]]
    assert [(line["key"], line["seeds"], line["mean"]) for line in papers if line["method"] == "maskcontrast"] == [
        ("", "0", "0.442")
    ]
    assert all(line["key"] for line in lines if not line["published"])
    figures_of_runs = formats.text(table).partition("mean, percent")[2]
    assert "40.5" in figures_of_runs
    assert "44.2" not in figures_of_runs


def test_the_map_that_is_read_does_not_part_them():
    rows = [run_row("maskcontrast", "sup", protocol="kmeans", k=50), run_row("maskcontrast", "sup", tap="decoder")]
    card = replace(CARDS["maskcontrast"], default_tap="x")
    lookup = {"methods": card}.get
    table = build(
        [*rows, *beside(rows, PAPER[:1], cards=lambda kind, name: lookup(kind))], cards=lambda kind, _: lookup(kind)
    )
    assert [label.text for label in table.rows] == ["maskcontrast", "maskcontrast decoder"]
    assert table.cells[1, 1].mean == pytest.approx(0.442)


def test_the_command(bench, tmp_path):
    store = Store(tmp_path / "results")
    store.save(run_row("swav", "800ep", tap="layer4"), {})
    status, out, _ = bench("table", "--published", "--rows", "protocol,clusters", "--columns", "method")
    assert status == 0
    header = [word.strip() for word in out.splitlines()[0].split("|")]
    assert header[1:3] == ["", "swav<sup>a</sup>"]
    status, out, _ = bench("table", "--published")
    line = next(line for line in out.splitlines() if line.startswith("| swav"))
    assert "40.5 ± 0.7" in line
    assert "4.4" in line
    for words, message in (
        (("--rows", "methods"), "no axis 'methods'"),
        (("--rows", "method", "--columns", "method,protocol"), "named twice"),
        (("--rows", ""), "all axes are on one side"),
    ):
        status, _, err = bench("table", *words)
        assert status == 2
        assert message in err


def test_nothing_published_is_said(bench, tmp_path):
    Store(tmp_path / "results").save(run_row("swav", data={"name": "shapes"}), {})
    status, out, err = bench("table", "--published")
    assert status == 0
    assert "nothing is published under" in err
    assert "published" not in out
