"""Known answers: the ceiling is exactly 1, and noise is worth what its null is, or the best constant prediction."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.datasets import open_dataset, shapes

RULES = ("one_to_one_iou", "one_to_one_pixels", "many_to_one_iou", "many_to_one_pixels")


def check(rows: list[dict], classes: int) -> None:
    for row in rows:
        means = row["mean"]
        if row["run"]["method"] == "oracle":
            for seed in row["per_seed"]:
                assert {rule: seed["scores"][rule]["miou"] for rule in RULES} == dict.fromkeys(RULES, 1.0)
        else:
            for rule in RULES:
                assert abs(means["scores"][rule]["miou"] - means["null"][rule]["miou"]) < 0.01, (row["run"], rule)
        assert row["run"]["settings"]["clusters"] == classes
        assert row["dropped"] == 0


def floors(bench, dataset: object, classes: int) -> list[dict]:
    status, out, err = bench(
        *("eval", "--method", "oracle", "--method", "noise", "--protocol", "kmeans", "--protocol", "overclustering"),
        *("--clusters", classes, "--seeds", 2, "--dataset", dataset, "--json"),
    )
    assert status == 0, err
    rows = json.loads(out)
    assert len(rows) == 4
    return rows


def test_shapes(bench, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 1, "val": 400})  # the pictures that are read
    check(floors(bench, "shapes", 11), 11)


@pytest.mark.parametrize("name", ["camvid-mini"])
def test_real_pictures(bench, shared, name):
    """Street frames: no background class, void pixels, 30 pictures."""
    check(floors(bench, shared / name, 11), 11)


# --- the linear probe: few pictures, whose train and val hold every class ------------------------------------------


def probe(bench, dataset: object, *methods: str, preset: str = "cached", **changes: Any) -> dict[str, dict]:
    """Rows by method; batches of one picture, for as many steps of a few pictures as the whole set has."""
    given = [word for key, value in changes.items() for word in ("--set", f"linear.{key}={value}")]
    words = [word for method in methods for word in ("--method", method)]
    status, out, err = bench(
        *("eval", *words, "--protocol", f"linear:{preset}", "--dataset", dataset, "--json"),
        *("--limit", 40 if dataset == "shapes" else 8, *given),
    )
    assert status == 0, err
    return {row["run"]["method"]: row for row in json.loads(out)}


def miou(row: dict) -> float:
    return row["per_seed"][0]["scores"]["as_predicted"]["miou"]


def best_constant(spec: object, limit: int) -> float:
    """mIoU of the class that does best when every pixel is given it: its share of the labelled pixels, over classes."""
    dataset = open_dataset(str(spec))
    labels = np.concatenate([dataset.label(name).ravel() for name in dataset.names("val")[:limit]])
    classes = len(dataset.classes)
    return max(np.mean(labels[labels != 255] == index) for index in range(classes)) / classes


def test_a_probe_on_shapes(bench, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 40, "val": 40})  # the pictures that are read
    rows = probe(bench, "shapes", "oracle", "noise", batch=1, epochs=30, val_every=0, lr=0.1, normalize="none")
    assert miou(rows["oracle"]) == 1.0
    constant = best_constant("shapes", 40)
    assert 0.05 < constant < 0.1
    assert abs(miou(rows["noise"]) - constant) < 0.01


def test_a_probe_on_real_pictures(bench, shared):
    """At lr=0.1 rare classes are not learned in 60 epochs; the loss is taken on 64 × 64 cells to save time."""
    changes = {"batch": 1, "epochs": 30, "val_every": 0, "lr": 1, "normalize": "none", "grid": 64}
    rows = probe(bench, shared / "camvid-mini", "oracle", **changes)
    assert miou(rows["oracle"]) == 1.0


def test_the_papers_probe_runs_on_horses(bench, shared):
    changes = {"size": 64, "epochs": 1}
    row = probe(bench, shared / "horses-mini", "timm:resnet18@random", preset="paper", **changes)["timm:resnet18"]
    assert (row["run"]["preset"], row["run"]["settings"]["batch"], row["run"]["settings"]["drop"]) == (
        "paper",
        16,
        "1/1",
    )
    assert 0 < miou(row) < 1
