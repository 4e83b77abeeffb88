"""One effort of K-means for pixels and objects, in settings and notes of every row; the rule of released rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.contracts import Scope
from bench.errors import SettingError
from bench.protocols import kmeans, overclustering
from bench.protocols._clustering import run
from bench.protocols._settings import EFFORT, effort_note, settle, with_effort
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork

CARDS = (kmeans.CARD, overclustering.CARD)
SEARCHED = ("native", "paper", "paper-search")
PHRASE = "K-means: 20 starts of 10 passes among 16,384 vectors, the best 3 finished on all"


def variants(card, preset: str, foreground: bool, explicit: frozenset[str] = frozenset(), **changes: Any):
    values = next(one for one in card.presets if one.name == preset).values()
    settings = apply(card.settings(), values | {"engine": "faiss"} | changes, card.name)
    scope = Scope(classes=4, device="cpu", vectors=999, pictures=400, foreground=foreground, explicit=explicit)
    return registry.load(card.expand)(settings, scope)


def effort_of(settings: Any) -> dict[str, int]:
    return {name: getattr(settings, name) for name in EFFORT}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_objects_and_pixels_get_the_same_effort_at_every_k(card):
    found = [
        variant.settings for preset in SEARCHED for own in (True, False) for variant in variants(card, preset, own)
    ]
    assert {settle(settings, True).unit for settings in found} == {"object"}
    assert {settle(settings, False).unit for settings in found} == {"pixel"}
    expected = {"restarts": 20, "candidates": 3, "sample": 16384, "passes": 10, "finished": 3}
    for settings in found:
        assert effort_of(settings) == expected
        assert effort_of(settle(settings, True)) == effort_of(settle(settings, False)) == expected


def test_versions_of_presets_rose_with_their_effort():
    for card in CARDS:
        versions = {preset.name: preset.version for preset in card.presets}
        assert versions == {"paper": 3, "paper-search": 2, "native": 3, "released-code": 2}


@pytest.mark.parametrize(
    ("changes", "record", "note"),
    [
        ({}, (20, 3, 16384, 10, 3), PHRASE),
        ({"restarts": 1}, (1, 3, 16384, 0, 1), "K-means: 1 start among 16,384 vectors, finished on all"),
        ({"restarts": 0, "candidates": 1, "sample": 0}, (1, 1, 0, 0, 1), "K-means: 1 start, finished on all"),
        (
            {"restarts": 10, "finished": 99, "sample": 0},
            (10, 3, 0, 0, 10),
            "K-means: 10 starts, finished on all",
        ),
        ({"passes": 1, "sample": 0}, (20, 3, 0, 1, 3), "K-means: 20 starts of 1 pass, the best 3 finished on all"),
    ],
)
def test_one_effort_has_one_record_and_is_said(changes, record, note):
    for card in CARDS:
        settings = variants(card, "native", False, **changes)[0].settings
        assert tuple(effort_of(settings).values()) == record
        assert effort_note(settings) == note
        assert with_effort(settings) == settings


def test_mini_batches_say_their_own_effort_and_read_no_other():
    settings = variants(kmeans.CARD, "released-code", True)[0].settings
    assert effort_of(settings) == {"restarts": 3, "candidates": 0, "sample": 0, "passes": 0, "finished": 0}
    assert effort_note(settings) == "K-means: 3 starts by mini-batches of 1,000"
    with pytest.raises(SettingError, match="algorithm=minibatch does not read finished, sample"):
        variants(kmeans.CARD, "released-code", True, explicit=frozenset({"sample", "finished"}))


def work_of(pictures: int = 24) -> MemoryWork:
    """Pictures of one object each, its cells around a direction of its class."""
    rng = np.random.default_rng(0)
    directions = np.eye(4, 6)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    labels = [np.where(mask, 1 + index % 3, 0).astype(np.uint8) for index in range(pictures)]
    maps = [directions[label[2::4, 2::4]] + 0.1 * rng.standard_normal((8, 8, 6)) for label in labels]
    logits = [np.where(mask[2::4, 2::4], 2.0, -2.0) for _ in labels]
    return MemoryWork(MemorySplit(maps=maps, labels=labels, masks=[mask] * pictures, logits=logits), classes=4)


def test_rows_of_objects_and_of_pixels_say_their_effort():
    work = work_of()
    native = variants(kmeans.CARD, "native", True)[0].settings
    released = variants(kmeans.CARD, "released-code", True)[0].settings
    assert PHRASE in run(work, native, 0).notes
    assert PHRASE in run(work, dataclasses.replace(native, unit="pixel"), 0).notes
    assert PHRASE in run(work, dataclasses.replace(native, unit="pixel", foreground="none"), 0).notes
    assert "K-means: 3 starts by mini-batches of 1,000" in run(work, released, 0).notes


# ----------------------------------------------------------------------------------------------------------------- rule


def test_released_code_matches_one_to_one_where_k_is_the_number_of_classes():
    rows = {row.settings.clusters: row for row in variants(overclustering.CARD, "released-code", True)}
    assert {k: row.headline for k, row in rows.items()} == {
        4: "one_to_one_iou", 50: "many_to_one_iou", 100: "many_to_one_iou", 200: "many_to_one_iou",
    }  # fmt: skip
    assert {k: row.settings.matching for k, row in rows.items()} == {4: "one", 50: "many", 100: "many", 200: "many"}
    for preset in SEARCHED:
        for row in variants(overclustering.CARD, preset, True):
            assert (row.headline, row.settings.matching) == ("many_to_one_iou", "many")
    assert [row.headline for row in variants(kmeans.CARD, "released-code", True)] == [""]


def test_the_rule_can_be_asked_for():
    rows = variants(overclustering.CARD, "native", False, matching="one")
    assert {row.headline for row in rows} == {"one_to_one_iou"}
