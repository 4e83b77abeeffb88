"""Known answers at full size: the ceiling is exactly 1, and noise is worth what its null is."""

from __future__ import annotations

import json

import pytest

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


def test_shapes(bench):
    check(floors(bench, "shapes", 11), 11)


@pytest.mark.parametrize("name", ["camvid-mini"])
def test_real_pictures(bench, shared, name):
    """Street frames: no background class, void pixels, 30 pictures."""
    check(floors(bench, shared / name, 11), 11)
