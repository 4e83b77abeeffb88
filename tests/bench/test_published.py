"""Figures of papers: what the file holds, which rows they may stand beside, and where a table puts them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import typing
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bench import formats, registry
from bench.contracts import Scope
from bench.plan import ProtocolChoice
from bench.published import Figure, beside, figures, left_out
from bench.records import CheckpointCard, MethodCard
from bench.settings import apply
from bench.store import Row, Store
from bench.tables import build

VOC = {"name": "voc", "split": "val", "fingerprint": "ab", "pictures": 1449, "classes": ["a"] * 21, "limit": None}
CARDS = {
    "maskcontrast": MethodCard(
        name="maskcontrast",
        summary="",
        factory="",
        checkpoints=(CheckpointCard(name="sup", filename="a"), CheckpointCard(name="unsup", filename="b")),
        default_tap="x",
        probe_tap="decoder",
    )
}
PIXELS = {"unit": "pixel", "foreground": "none", "background": "cluster", "normalize": "none", "pca": 32}
OBJECTS = {"unit": "object", "foreground": "adapter", "background": "saliency", "normalize": "l2", "pca": 0}


def cards(kind: str, name: str) -> Any:
    return CARDS.get(name) if kind == "methods" else registry.card(kind, name)


def run_row(
    method: str,
    checkpoint: str = "none",
    *,
    k: int = 21,
    data: dict[str, Any] | None = None,
    protocol: str = "kmeans",
    preset: str = "paper",
    settings: dict[str, Any] | None = None,
    came_to: dict[str, Any] | None = None,
    **run: Any,
) -> Row:
    """A row of a registered protocol and preset, as `bench eval` would store it."""
    card = registry.card("protocols", protocol)
    chosen = next(one for one in card.presets if one.name == preset)
    wanted = {"clusters": k} if "clusters" in typing.get_type_hints(card.settings) else {}
    asked = apply(card.settings(), chosen.values() | wanted, protocol)
    choice = ProtocolChoice(card=card, preset=chosen, settings=asked, explicit=frozenset())
    values = dataclasses.asdict(choice.variants(Scope(classes=21, device="cpu", pictures=1449))[0].settings)
    del values["tap"]
    facts = PIXELS if came_to is None else came_to
    known = cards("methods", method)
    whole = {
        "method": method,
        "method_version": known.version_of(str(run.get("tap", "x"))) if known else 1,
        "checkpoint": {"name": checkpoint, "sha256": "cd" * 32},
        "tap": "x",
        "protocol": protocol,
        "protocol_version": card.version,
        "preset": preset,
        "preset_version": chosen.version,
        "settings": json.loads(json.dumps(values | (settings or {}))),
        "dataset": VOC | (data or {}),
        **run,
    }
    headline = {"rule": card.headline, "metric": "miou"}
    asked = whole["settings"]
    settled = {name: value for name, value in facts.items() if asked.get(name) == "auto"}
    per_seed = [
        {"seed": seed, "settled": settled, "scores": {card.headline: {"miou": 0.4 + seed / 100}}} for seed in range(2)
    ]
    return Row.of(whole, per_seed, headline=headline)


def figure(method: str, miou: float, source: str = "a paper", **more: str) -> Figure:
    facts = {"protocol": "kmeans", "presets": "paper", "settings": "clusters=21 unit=pixel", "rule": "one_to_one_iou"}
    return Figure(
        method=method, dataset="voc", split="val", pictures=1449, miou=miou, source=source, note="its note",
        **facts | more,
    )  # fmt: skip


PAPER = (figure("maskcontrast", 44.2), figure("maskcontrast@unsup", 35.0, source="b"), figure("Theirs (words)", 9.8))


def test_every_published_figure_is_usable():
    found = figures()
    assert len(found) > 40
    places = Counter((f.method, f.dataset, f.split, f.protocol, f.settings) for f in found)
    assert max(places.values()) == 1  # two in one place would hide one another
    for f in found:
        assert f.dataset in registry.names("datasets")
        assert 0 < f.miou < 100
        assert f.source
        assert f.note
        card = registry.card("protocols", f.protocol)
        assert {pair.split("=")[0] for pair in f.settings.split()} <= set(card.settings.__dataclass_fields__)
        assert f.presets.split()
        assert set(f.presets.split()) <= {preset.name for preset in card.presets}
        assert f.rule == card.headline


def test_what_is_reported_of_the_best_epoch_or_at_another_size_stands_beside_nothing():
    assert {f.protocol for f in figures() if f.otherwise} == {"linear", "retrieval"}
    assert not [f for f in figures() if f.protocol in ("linear", "retrieval") and not f.otherwise]
    rows = [
        run_row("maskcontrast", "sup", protocol=protocol, preset=preset.name, tap="decoder")
        for protocol in ("linear", "retrieval")
        for preset in registry.card("protocols", protocol).presets
    ]
    assert beside(rows) == []
    told = left_out(rows)
    assert [text.split(" left out")[0] for text in told] == [
        "4 published linear figures", "10 published linear figures", "8 published retrieval figures",
    ]  # fmt: skip
    assert "best on val" in told[0]
    assert "512×512" in told[2]


def test_names_of_released_checkpoints_are_ours():
    methods = registry.cards("methods")
    for f in figures():
        name, _, checkpoint = f.method.partition("@")
        if name in methods and checkpoint:
            assert checkpoint in {one.name for one in methods[name].checkpoints}


def test_the_figures_of_the_supplement():
    """Table 1 of arXiv 2102.06191, the variant with supervised initialisation and supervised saliency."""
    table = [f for f in figures() if f.method == "maskcontrast" and "Table 1" in f.source]
    found = {f.settings.split()[0]: f.miou for f in table}
    assert {f.settings.partition(" ")[2] for f in table} == {"unit=object foreground=adapter background=saliency"}
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
        pytest.param({"k": 50}, id="clusters"),
        pytest.param({"protocol": "overclustering"}, id="protocol"),
        pytest.param({"data": {"name": "shapes"}}, id="data"),
        pytest.param({"data": {"split": "train"}}, id="split"),
        pytest.param({"data": {"limit": 10, "pictures": 10}}, id="limit"),
        pytest.param({"preset": "native"}, id="size"),
        pytest.param({"preset_version": 1}, id="version"),
        pytest.param({"settings": {"size": "448"}}, id="stretched"),
        pytest.param({"settings": {"pca": 2}}, id="pca"),
        pytest.param({"settings": {"normalize": "l2"}}, id="normalize"),
        pytest.param({"settings": {"fit": "train"}}, id="fit"),
        pytest.param({"came_to": OBJECTS}, id="objects"),
        pytest.param({"came_to": {}}, id="not told"),
        pytest.param({"method": "maskcontrast", "tap": "decoder"}, id="tap"),
    ],
)
def test_what_was_scored_otherwise_gets_no_figure(other):
    row = run_row(**{"method": "swav"} | other)
    assert beside([row], PAPER, cards=cards) == []
    if row.run["protocol"] == "kmeans" and row.run["dataset"] == VOC:
        assert left_out([row], PAPER, cards=cards) == [
            "3 published kmeans figures left out: scored under other settings than these rows"
        ]


def test_what_changes_no_figure_of_a_paper_parts_nothing():
    assert len(beside([run_row("swav", settings={"engine": "torch"})], PAPER, cards=cards)) == len(PAPER)


def named(rows: list[Row]) -> dict[str, float]:
    """The published figures beside rows, by method."""
    return {row.run["method"]: 100 * (row.headline_mean or 0) for row in beside(rows)}


def test_the_figures_of_pixels_stand_beside_pixels_and_those_of_objects_beside_objects():
    pixels = {"swav": 4.4, "moco_v2": 4.3, "supervised": 4.4}
    objects = {
        "maskcontrast": 44.2, "maskcontrast@unsupervised-saliency": 35.0,
        "MaskContrast (supervised init, unsupervised saliency)": 41.6,
        "MaskContrast (MoCo v2 init, supervised saliency)": 38.9,
    }  # fmt: skip
    of = {"tap": "embedding", "came_to": OBJECTS}
    assert named([run_row("swav", "800ep", tap="layer4")]) == pytest.approx(pixels)
    assert named([run_row("maskcontrast", "supervised-saliency", **of)]) == pytest.approx(objects)
    assert named([run_row("maskcontrast", preset="released-code", came_to=OBJECTS, tap="embedding")]).keys() == (
        objects.keys()
    )
    for settings in ({"background": "cluster"}, {"foreground": "masks:true"}, {"threshold": 0.5}, {"pooling": "logit"}):
        assert named([run_row("maskcontrast", settings=settings, **of)]) == {}
    assert named([run_row("maskcontrast", protocol="overclustering", k=500, **of)])["maskcontrast"] == (
        pytest.approx(57.0)
    )
    assert named([run_row("iic", tap="head_B", came_to={"unit": "network"})]) == pytest.approx({"iic": 9.8})
    searched = run_row("colorization", preset="paper-search", tap="search")
    assert named([searched]) == pytest.approx({"colorization": 4.9})


def test_a_stand_in_names_its_map_as_the_method_does():
    """No line reads `maskcontrast None for linear`."""
    linear = figure("maskcontrast", 63.9, protocol="linear", settings="", rule="as_predicted")
    ours = [run_row("maskcontrast", "sup"), run_row("swav", protocol="linear")]
    table = build([*ours, *beside(ours, (linear,), cards=cards)], cards=cards)
    assert [label.text for label in table.rows] == ["maskcontrast", "swav"]
    alone = build([ours[1], *beside(ours[1:], (linear,), cards=cards)], cards=cards)
    assert [label.text for label in alone.rows] == ["swav", "maskcontrast"]


def test_one_figure_for_many_methods_and_each_of_several_columns():
    both = tuple(replace(one, presets="paper native") for one in PAPER)
    rows = [run_row("swav"), run_row("moco_v2"), run_row("swav", preset="native")]
    papers = beside(rows, both, cards=cards)
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
    figures_of_runs = formats.text(table).partition("in percent  ")[2]
    assert "40.5" in figures_of_runs
    assert "44.2" not in figures_of_runs


def test_the_map_of_a_paper_is_not_another_one():
    rows = [run_row("maskcontrast", "sup", tap="decoder"), run_row("swav")]
    table = build([*rows, *beside(rows, PAPER[:1], cards=cards)], cards=cards)
    assert [label.text for label in table.rows] == ["maskcontrast decoder", "swav", "maskcontrast"]
    assert table.cells[2, 1].mean == pytest.approx(0.442)


def test_the_command(bench, tmp_path):
    store = Store(tmp_path / "results")
    store.save(run_row("swav", "800ep", tap="layer4"), {})
    status, out, _ = bench("table", "--published", "--rows", "protocol,clusters", "--columns", "method")
    assert status == 0
    header = [word.strip() for word in out.splitlines()[0].split("|")]
    assert header[1:3] == ["", "swav"]
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
