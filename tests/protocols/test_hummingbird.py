"""Dense nearest neighbours: known answers, brute force, the bounds of the memory, and what is said about it."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import cluster, neighbours
from bench.contracts import Outcome, Scope
from bench.errors import DatasetError, MismatchError, SettingError
from bench.metrics import count_pixels
from bench.protocols import _neighbours, hummingbird
from bench.protocols._hummingbird import HummingbirdSettings
from bench.settings import apply
from bench.testing import MemoryMaps, MemorySplit, MemoryWork, check_protocol

CARD = hummingbird.CARD
VOID = 255


def settings(preset: str = "native", **changes: Any) -> HummingbirdSettings:
    values = next(p for p in CARD.presets if p.name == preset).values()
    found = apply(CARD.settings(), {**values, "engine": "torch", **changes}, CARD.name)
    assert isinstance(found, HummingbirdSettings)
    return found


def split(pictures: int, seed: int, *, classes: int = 4, cells: int = 6, width: int = 8) -> MemorySplit:
    """Noisy features of blocks of labels, four pixels to a cell's side, with void here and there."""
    rng = np.random.default_rng(seed)
    maps, labels = [], []
    for _ in range(pictures):
        label = rng.integers(0, classes, (cells, cells), np.uint8)
        centres = np.random.default_rng(99).standard_normal((classes, width))
        maps.append(centres[label] + 0.7 * rng.standard_normal((cells, cells, width)))
        pixels = label.repeat(4, 0).repeat(4, 1)
        pixels[rng.random(pixels.shape) < 0.1] = VOID
        pixels[rng.random(pixels.shape) < 0.1] = rng.integers(classes)
        pixels[:4, :4] = VOID
        labels.append(pixels)
    return MemorySplit(maps=maps, labels=labels)


def work_of(train: MemorySplit, scored: MemorySplit, **facts: Any) -> MemoryWork:
    return MemoryWork(scored, train=train, classes=4, **facts)


def run(work: MemoryWork, seed: int = 0, **changes: Any) -> Outcome:
    outcome: Outcome = _neighbours.run(work, settings(**changes), seed)
    return outcome


# --- answers -----------------------------------------------------------------------------------------------


def test_it_keeps_the_contract():
    check_protocol(CARD)


def test_labels_as_features_are_found_again(bench, voc):
    words = ("--protocol", "hummingbird", "--dataset", voc, "--size", "64", "--limit", "4", "--json")
    status, out, err = bench("eval", "--method", "oracle", "--method", "colour", *words)
    assert status == 0, err
    oracle, colour = json.loads(out)
    assert oracle["mean"]["scores"]["as_predicted"]["miou"] == 1.0
    assert oracle["run"]["dataset"]["pictures"] == 4
    assert 0.5 < colour["mean"]["scores"]["as_predicted"]["miou"] < 1
    assert colour["mean"]["memory"] == colour["mean"]["train_cells"] == 4 * 8 * 8
    assert colour["notes"] == ["memory: 256 of 256 cells of 4 train pictures (0.0 MB)"]
    assert colour["seeds"] == [0]


@pytest.mark.parametrize("void", ["leave", "background"])
@pytest.mark.parametrize("engine", ["torch", pytest.param("faiss", marks=pytest.mark.skipif(
    not cluster.faiss_available(), reason="no faiss"))])  # fmt: skip
def test_it_agrees_with_brute_force(engine, void):
    train, scored = split(5, 0), split(3, 1)
    outcome = run(work_of(train, scored), engine=engine, void=void, neighbours=9)
    vectors, soft = [], []
    for map_, label in zip(train.maps, train.labels, strict=True):
        for i, j in np.ndindex(6, 6):
            pixels = label[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].ravel()
            pixels = pixels[pixels != VOID] if void == "leave" else np.where(pixels == VOID, 0, pixels)
            if len(pixels):
                vectors.append(map_[i, j])
                soft.append(np.bincount(pixels, minlength=4) / len(pixels))
    keys, shares = np.array(vectors), np.array(soft)
    keys /= np.linalg.norm(keys, axis=1)[:, None]
    assert outcome.facts["memory"] == len(keys) == 5 * 36 - 5 * (void == "leave")
    for index, (map_, label) in enumerate(zip(scored.maps, scored.labels, strict=True)):
        queries = map_.reshape(36, -1) / np.linalg.norm(map_.reshape(36, -1), axis=1)[:, None]
        scores = np.zeros((36, 4))
        for cell, cosines in enumerate(queries @ keys.T):
            nearest = np.argsort(-cosines)[:9]
            weights = np.exp(cosines[nearest] / 0.02)
            scores[cell] = weights @ shares[nearest] / weights.sum()
        low = torch.from_numpy(scores.reshape(6, 6, 4).transpose(2, 0, 1))[None]
        high = torch.nn.functional.interpolate(low, size=(24, 24), mode="bilinear", align_corners=False)
        wanted = count_pixels(high[0].argmax(0).numpy(), label, 4, 4)
        found = outcome.counts.dense()[index]
        assert np.abs(found - wanted).sum() <= 2  # a pixel where two classes are equal but for rounding
    assert outcome.matched is not None
    assert outcome.matched.tolist() == [0, 1, 2, 3]


def test_void_cells_are_not_remembered_unless_they_are_background():
    train = MemorySplit(maps=[np.eye(2)[[[0, 1]]]], labels=[np.full((4, 8), VOID, np.uint8)])
    train.labels[0][:, 4:] = 1
    left, counted = (run(work_of(train, train), void=void, neighbours=1) for void in ("leave", "background"))
    assert left.facts["memory"] == 1
    assert "1 have no label" in left.notes[0]
    assert left.counts.dense().sum((0, 2)).tolist() == [0, 32, 0, 0]
    assert counted.facts["memory"] == 2
    assert counted.counts.dense().sum((0, 2)).tolist() == [16, 16, 0, 0]


# --- the memory --------------------------------------------------------------------------------------------


def test_a_memory_that_is_too_small_is_drawn_picture_by_picture():
    train, scored = split(5, 0), split(2, 1)
    outcome = run(work_of(train, scored), memory=52)
    assert outcome.facts == {"memory": 52, "memory_bytes": 52 * 4 * (8 + 4), "train_cells": 180}
    assert outcome.notes[0] == "memory: 52 of 180 cells of 5 train pictures (0.0 MB, balanced, 5 have no label)"
    first = {tuple(row) for row in outcome.arrays["vectors"]}
    for number, map_ in enumerate(train.maps):
        own = {tuple(row) for row in cluster.normalize_l2(map_.reshape(36, 8).astype(np.float32))}
        assert len(first & own) == 10 + (number in (0, 2))  # 52 = 5 · 10 + 2
    assert np.array_equal(outcome.arrays["vectors"], run(work_of(train, scored), memory=52).arrays["vectors"])
    for change in ({"seed": 1}, {"sampling": "uniform"}):
        other = run(work_of(train, scored), memory=52, **change)
        assert {tuple(row) for row in other.arrays["vectors"]} != first


def test_without_a_number_the_memory_is_what_fits_into_two_gigabytes():
    from bench.protocols._hummingbird import bytes_a_vector, places

    for channels, classes in ((2048, 21), (384, 150)):
        vectors = places(settings(), channels, classes)
        size = np.empty((2, channels), np.float32).nbytes // 2 + np.empty((2, classes), np.float32).nbytes // 2
        assert bytes_a_vector(channels, classes) == size
        assert 2e9 - size < vectors * size <= 2e9
    assert places(settings(), 3, 2) == places(settings("paper", memory=10_240_000), 2048, 21) == 10_240_000
    assert places(settings("paper"), 2048, 21) == 2_000_000_000 // (4 * (2048 + 21))
    assert places(settings(memory=5), 3, 2) == 5


class OnePass(MemoryMaps):
    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_both_splits_are_read_once_and_memory_stays_within_its_bound(monkeypatch):
    """320 pictures of 16² cells, 21 MB of features: 400 vectors are kept, and no array is as large as all cells."""
    monkeypatch.setitem(neighbours._SIMILARITIES, "cpu", 1 << 14)
    train, scored = (split(160, seed, cells=16, width=64) for seed in (0, 1))
    work = work_of(train, scored)
    work._maps = {
        name: OnePass(held.maps, name, [label.shape[:2] for label in held.labels])
        for name, held in (("train", train), ("eval", scored))
    }
    labels = work.labels("train")
    monkeypatch.setattr(work, "labels", lambda split: iter(labels))
    tracemalloc.start()
    outcome = run(work, memory=400, neighbours=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.facts["memory"] == 400
    assert [work.maps(name).passes for name in ("train", "eval")] == [1, 1]
    assert peak < outcome.facts["memory_bytes"] + 2e6 < work.maps("train").vectors * 64 * 4 / 4


def test_more_neighbours_than_the_memory_has_are_cut_and_said():
    work = work_of(split(1, 0), split(1, 1))
    outcome = run(work, neighbours=30, memory=12)
    assert "30 neighbours were asked for; the memory has 12, which are taken" in outcome.notes
    assert work.said == list(outcome.notes[1:])
    same = run(work_of(split(1, 0), split(1, 1)), neighbours=12, memory=12)
    assert np.array_equal(outcome.counts.dense(), same.counts.dense())


def test_a_class_that_is_not_remembered_is_named():
    train, scored = split(2, 0), split(1, 1)
    for label in train.labels:
        label[label == 2] = 1
    outcome = run(work_of(train, scored, class_names=("sky", "road", "car", "tree")))
    assert "no cell of the memory has the class car: it is never predicted" in outcome.notes
    assert outcome.counts.dense()[:, 2].sum() == 0


def test_nothing_to_remember_is_refused():
    train = MemorySplit(maps=split(1, 0).maps, labels=[np.full((24, 24), VOID, np.uint8)])
    with pytest.raises(DatasetError, match=r"nothing but void \(255\).*hummingbird.void=background"):
        run(work_of(train, split(1, 1)))


# --- before it begins --------------------------------------------------------------------------------------

SCOPE = Scope(classes=21, device="cpu", vectors=1000, train=10, train_vectors=50_000, channels=2048)


@pytest.mark.parametrize(
    ("device", "engine", "wanted"),
    [("cpu", "auto", "faiss"), ("cuda:1", "auto", "torch"), ("cpu", "torch", "torch"), ("cuda", "faiss", "faiss")],
)
def test_the_engine_follows_the_device(device, engine, wanted, monkeypatch):
    monkeypatch.setattr(cluster, "faiss_available", lambda: True)
    monkeypatch.setattr(neighbours, "room", lambda device: 10**12)
    (variant,) = hummingbird.expand(settings(engine=engine), replace(SCOPE, device=device))
    assert variant.settings == settings(engine=wanted)


def test_without_faiss_there_is_torch(monkeypatch):
    monkeypatch.setattr(cluster, "faiss_available", lambda: False)
    with pytest.raises(MismatchError, match=r"hummingbird needs faiss: pip.*--set hummingbird.engine=torch"):
        hummingbird.expand(settings(engine="auto"), SCOPE)
    assert hummingbird.expand(settings(engine="torch"), SCOPE)[0].settings.engine == "torch"


def test_a_memory_that_the_machine_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(neighbours, "room", lambda device: 400_000_000)
    assert hummingbird.expand(settings("paper"), replace(SCOPE, train_vectors=None, channels=None))
    assert hummingbird.expand(settings("paper", memory=48_000), SCOPE)
    with pytest.raises(
        SettingError, match=r"50,000 vectors of width 2048 takes 413.8 MB with its labels, there are 400.0 MB: ask"
    ):
        hummingbird.expand(settings("paper"), SCOPE)


def test_void_cannot_count_as_a_background_that_there_is_not():
    with pytest.raises(SettingError, match=r"void=background: the data set has no background class.*void=leave"):
        hummingbird.expand(settings(void="background"), replace(SCOPE, background=False))


def test_the_price_names_memory_passes_and_products():
    assert hummingbird.price(settings(memory=20_000), SCOPE) == (
        "10 forward passes for the train split, kept in the cache; a memory of 20,000 of its 50,000 cells, 165.5 MB; "
        "2.0e+07 products of vectors of width 2048"
    )


def test_a_dry_run_tells_the_price(bench, voc):
    words = ("--method", "colour", "--protocol", "hummingbird", "--set", "hummingbird.memory=30", "--dry-run")
    status, out, err = bench("eval", "--dataset", voc, *words)
    assert status == 0, err
    assert "4 forward passes for the train split" in out
    assert "a memory of 30 of its 208 cells" in out


# --- other pictures ----------------------------------------------------------------------------------------


def test_a_kept_memory_paints_other_pictures(bench, voc, tmp_path):
    words = ("--method", "colour", "--protocol", "hummingbird", "--dataset", voc, "--json")
    status, out, err = bench("eval", *words)
    assert status == 0, err
    (row,) = json.loads(out)
    pictures = [voc / "JPEGImages" / f"val{index}.jpg" for index in range(6)]
    folder = tmp_path / "painted"
    painted = bench("predict", *pictures, "--method", "colour", "--row", row["key"], "--output", folder)
    assert painted[0] == 0, painted[2]
    counts = np.zeros((3, 3), int)
    for picture in pictures:
        ids = np.array(Image.open(folder / f"{picture.stem}.png"))
        label = np.array(Image.open(voc / "SegmentationClass" / f"{picture.stem}.png"))
        assert ids.shape == label.shape
        np.add.at(counts, (ids[label != VOID], label[label != VOID]), 1)
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert iou.tolist() == pytest.approx(row["mean"]["scores"]["as_predicted"]["iou"])
    legend = list(csv.DictReader((folder / "legend.csv").open()))
    assert [line["name"] for line in legend] == ["background", "left", "right"]


def test_a_large_memory_is_not_kept_and_cannot_paint(monkeypatch):
    monkeypatch.setattr(_neighbours, "_KEPT", 1_000)
    work = work_of(split(2, 0), split(1, 1))
    arrays = run(work).arrays
    assert list(arrays) == ["memory"]
    with pytest.raises(MismatchError, match=r"70 vectors, was not kept.*make a row with a smaller one"):
        _neighbours.predict(work, settings(), arrays)


# --- real pictures -----------------------------------------------------------------------------------------


def test_street_frames_are_told_apart(bench, shared: Path):
    words = ("--dataset", shared / "camvid-mini", "--size", "64", "--limit", "4", "--json")
    status, out, err = bench("eval", "--method", "oracle", "--protocol", "hummingbird", *words)
    assert status == 0, err
    (row,) = json.loads(out)
    absent = row["run"]["dataset"]["classes"].index("fence")
    assert any("has the class fence: it is never predicted" in note for note in row["notes"])
    scores = row["mean"]["scores"]["as_predicted"]
    assert scores["iou"][absent] == 0
    assert scores["pixel_accuracy"] > 0.97  # the pixels of that class alone are missed
    assert "have no label" in row["notes"][0]
