"""Floors and scoring versions, from the command line to rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import metrics
from bench.store import Row, Store, arrays_of

EVAL = ("eval", "--method", "colour", "--json")
KMEANS = ("--protocol", "kmeans", "--seeds", 2)


def rows(bench, voc, *words):
    status, out, err = bench(*EVAL, "--dataset", voc, *words)
    assert status == 0, err
    return [Row.from_json(data) for data in json.loads(out)]


@pytest.mark.parametrize(
    "words",
    [
        ("--protocol", "kmeans"),
        ("--protocol", "overclustering", "--clusters", "3,8"),
        ("--protocol", "linear:cached", "--set", "linear.epochs=1"),
        ("--protocol", "hummingbird", "--set", "hummingbird.memory=200"),
    ],
    ids=["kmeans", "overclustering", "linear", "hummingbird"],
)
def test_every_row_has_its_floors(bench, voc, words):
    for row in rows(bench, voc, *words):
        assert row.scoring == metrics.SCORING
        for name in metrics.FLOORS:
            assert row.figure(name) is not None, name
        assert row.spread("null") is not None
        assert row.spread("exchanged") is not None
        assert row.figure("constant", metric="pixel_accuracy") == pytest.approx(most_frequent(voc))
        assert row.floor[1] == max(row.figure(name) for name in metrics.FLOORS)


def most_frequent(voc):
    from PIL import Image

    labels = [np.array(Image.open(path)) for path in sorted((voc / "SegmentationClass").glob("val*.png"))]
    pixels = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=256)[:255]
    return pixels.max() / pixels.sum()


def test_one_picture_has_a_constant_alone(bench, voc):
    (row,) = rows(bench, voc, *KMEANS, "--limit", 1)
    assert row.figure("constant") > 0
    for name in ("held_out", "null", "exchanged"):
        assert row.figure(name) is None
        assert "two pictures" in row.per_seed[0][f"{name}_note"]


def test_figures_of_two_scorings_do_not_mix(bench, voc, tmp_path):
    """A row of the first scoring is read and scored again; more seeds are not added to it, all are computed anew."""
    results = tmp_path / "old"
    words = (*KMEANS, "--results", results)
    (row,) = rows(bench, voc, *words)
    (path,) = results.glob("*.json")
    added = {"constant", "exchanged", "draws", "null_note", "exchanged_note"}
    per_seed = [{name: value for name, value in own.items() if name not in added} for own in row.per_seed]
    older = Row.of(row.run, per_seed, **rest(row))
    path.write_text(json.dumps({k: v for k, v in older.to_json().items() if k != "scoring"}))

    (read,) = rows(bench, voc, *words)
    assert read.headline_mean == row.headline_mean
    assert read.figure("null") == row.figure("null")
    assert read.figure("exchanged") is None
    assert len(list(results.glob("*.json"))) == 1

    (more,) = rows(bench, voc, *words, "--seeds", 3)
    assert more.seeds == [0, 1, 2]
    assert all(own["exchanged"] is not None for own in more.per_seed)
    assert "earlier" not in more.provenance

    (again,) = rows(bench, voc, *words, "--again")
    assert again.seeds == [0, 1, 2]
    assert again.figure("exchanged") == pytest.approx(more.figure("exchanged"), abs=0)


def rest(row):
    return {name: getattr(row, name) for name in ("headline", "notes", "provenance", "seconds", "peak_memory_bytes")}


def test_exchanged_layouts_are_those_of_the_stored_assignments(bench, voc, tmp_path):
    """The mean over donors, from what lies beside the row, pixel by pixel."""
    from PIL import Image

    from bench.exchange import donors

    results = tmp_path / "rows"
    (row,) = rows(bench, voc, "--protocol", "kmeans", "--seeds", 1, "--results", results)
    store = Store(results)
    arrays = arrays_of(replace(row, path=next(results.glob("*.json"))), store)
    names = [str(name) for name in arrays["names"]]
    labels = [np.array(Image.open(voc / "SegmentationClass" / f"{name}.png")) for name in names]
    ends = np.cumsum([h * w for h, w in arrays["grids"]])
    blocks = np.split(arrays["assignments"], ends[:-1])
    cells = [block.reshape(grid) for block, grid in zip(blocks, arrays["grids"], strict=True)]
    stride = row.provenance["map"][0]["stride"]
    maps = [
        ids.repeat(stride, 0).repeat(stride, 1)[: label.shape[0], : label.shape[1]]
        for ids, label in zip(cells, labels, strict=True)
    ]
    scores = []
    for donor in donors(names):
        tables = []
        for number, label in enumerate(labels):
            own = maps[donor[number]]
            at = ((2 * np.arange(side) + 1) * own.shape[axis] // (2 * side) for axis, side in enumerate(label.shape))
            tables.append(metrics.count_pixels(own[np.ix_(*at)], label, 3, 3))
        confusion = metrics.Counts.from_dense(tables).canonical()[0].confusion()
        scores.append(metrics.score_rules(confusion, 0)["one_to_one_iou"]["miou"])
    assert row.figure("exchanged") == pytest.approx(np.mean(scores), abs=1e-12)
