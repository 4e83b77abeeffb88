"""`kmeans` and `overclustering` on several maps: one feature pass, one choice, every layer's figure."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.datasets import FolderDataset
from bench.features import SplitMaps
from bench.protocols._draw import held_out
from tests.conftest import make_voc

METHOD = '''
import torch
from torch import nn

from bench.backbone import Backbone
from bench.records import Tap


class Layers(nn.Module):
    """Three maps of one picture: where a cell is, which tells nothing, its colour, and the colour of a larger cell."""

    def forward(self, pictures):
        place = torch.linspace(-1, 1, pictures.shape[3] // 4).expand(len(pictures), 2, pictures.shape[2] // 4, -1)
        return {
            "place": place.contiguous(),
            "colour": nn.functional.avg_pool2d(pictures, 4),
            "coarse": nn.functional.avg_pool2d(pictures, 8),
        }


def build():
    taps = [Tap(name="place", channels=2, stride=4), Tap(name="colour", channels=3, stride=4),
            Tap(name="coarse", channels=3, stride=8)]
    return Backbone(Layers(), taps=taps, default_tap="place", fingerprint="layers")
'''


@pytest.fixture
def method(tmp_path: Path) -> str:
    file = tmp_path / "layers.py"
    file.write_text(METHOD)
    return f"{file}:build"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "layered", train=20)


def rows(bench: Any, *words: object) -> list[dict[str, Any]]:
    status, out, err = bench("eval", "--json", *words)
    assert status == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def figure(row: dict[str, Any], rule: str, metric: str) -> float:
    return float(np.mean([seed["scores"][rule][metric] for seed in row["per_seed"]]))


def test_one_layer_is_chosen_and_scored_as_if_it_were_alone(bench, method, data):
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--seeds", 2)
    (searched,) = rows(bench, *words, "--set", "kmeans.tap=search")
    assert searched["run"]["tap"] == "search"
    tried = searched["per_seed"][0]["tried"]
    assert list(tried) == ["tap=place", "tap=colour", "tap=coarse"]
    chosen = max(tried, key=lambda name: tried[name]["held_out_miou"])
    assert chosen != "tap=place"
    assert searched["per_seed"][1]["tried"] == tried
    (alone,) = rows(bench, *words, "--set", f"kmeans.{chosen}")
    for mine, its in zip(searched["per_seed"], alone["per_seed"], strict=True):
        assert mine["scores"] == its["scores"]
    note = next(note for note in searched["notes"] if "chosen by" in note)
    assert f"a tenth of the train split (2 pictures): {chosen}" in note
    assert all(f"{name}: {100 * figures['held_out_miou']:.1f}, {100 * figures['miou']:.1f}" in note
               for name, figures in tried.items())  # fmt: skip


def test_every_layer_has_its_line_in_a_table_for_machines(bench, method, data):
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--seeds", 2, "--set", "kmeans.tap=search")
    (row,) = rows(bench, *words)
    status, out, err = bench("table", "--format", "csv")
    assert status == 0, err
    lines = [line for line in csv.DictReader(io.StringIO(out)) if line["tried"]]
    shown = {(line["tried"], line["metric"]): float(line["mean"]) for line in lines}
    tried = row["per_seed"][0]["tried"]
    assert shown == {(tap, name): value for tap, figures in tried.items() for name, value in figures.items()}


def test_the_figures_are_those_of_the_protocol_on_the_held_out_pictures(bench, method, data, tmp_path):
    words = ("--method", method, "--protocol", "kmeans", "--seeds", 3)
    (searched,) = rows(bench, *words, "--dataset", data, "--set", "kmeans.tap=search")
    tried = searched["per_seed"][0]["tried"]
    dataset = FolderDataset(data)
    names = dataset.names("train")
    counts = np.stack([np.bincount(dataset.label(name).ravel(), minlength=256) for name in names])
    lists = data / "ImageSets/Segmentation"
    scored = (lists / "val.txt").read_text()
    (lists / "val.txt").write_text("\n".join(names[index] for index in held_out(names, counts)) + "\n")
    held = {tap: rows(bench, *words, "--dataset", data, "--set", f"kmeans.tap={tap}")[0] for tap in ("place", "coarse")}
    (lists / "val.txt").write_text(scored)
    (coarse,) = rows(bench, *words, "--dataset", data, "--set", "kmeans.tap=coarse")
    for tap, row in held.items():
        assert tried[f"tap={tap}"]["held_out_miou"] == pytest.approx(figure(row, "one_to_one_iou", "miou_present"))
    assert tried["tap=coarse"]["miou"] == pytest.approx(figure(coarse, "one_to_one_iou", "miou"))


def test_the_scored_split_may_choose_as_in_papers(bench, method, data):
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--seeds", 1)
    (row,) = rows(bench, *words, "--set", "kmeans.tap=place,coarse", "--set", "kmeans.choose_on=scored")
    tried = row["per_seed"][0]["tried"]
    assert list(tried) == ["tap=place", "tap=coarse"]
    assert all(set(figures) == {"miou"} for figures in tried.values())
    assert any(
        note.startswith("chosen by the scored split itself: tap=coarse; tried (mIoU): ") for note in row["notes"]
    )
    assert "train" not in row["run"]["dataset"]
    (paper,) = rows(bench, *words, "--protocol", "kmeans:paper-search", "--size", 64)[-1:]
    assert (paper["run"]["tap"], paper["run"]["settings"]["choose_on"]) == ("search", "scored")


def test_every_k_chooses_its_own_layer_by_its_own_rule(bench, method, data):
    words = ("--method", method, "--protocol", "overclustering", "--dataset", data, "--clusters", "3,12")
    found = rows(bench, *words, "--set", "overclustering.tap=search", "--seeds", 1)
    assert [row["run"]["settings"]["clusters"] for row in found] == [3, 12]
    for row in found:
        tried = row["per_seed"][0]["tried"]
        chosen = max(tried, key=lambda name: tried[name]["held_out_miou"])
        (alone,) = rows(bench, *words[:-1], row["run"]["settings"]["clusters"], "--set", f"overclustering.{chosen}",
                        "--seeds", 3)  # fmt: skip
        assert tried[chosen]["miou"] == pytest.approx(figure(alone, "many_to_one_iou", "miou"))


def test_a_picture_goes_through_the_network_once(bench, data, monkeypatch):
    seen = []
    forward = SplitMaps._forward

    def counted(self, pictures, labels, taps):
        seen.append((len(pictures), tuple(taps)))
        return forward(self, pictures, labels, taps)

    monkeypatch.setattr(SplitMaps, "_forward", counted)
    words = ("--method", "timm:resnet18@random", "--dataset", data, "--seeds", 2, "--size", 64)
    rows(bench, *words, "--protocol", "kmeans", "--set", "kmeans.tap=stage3,stage4")
    assert sum(number for number, _ in seen) == 6 + 2
    assert len({taps for _, taps in seen}) == 1


def test_clusters_of_the_train_split_are_chosen_without_the_held_out_pictures(bench, method, data):
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--seeds", 1, "--set", "kmeans.fit=train")
    (searched,) = rows(bench, *words, "--set", "kmeans.tap=search")
    tried = searched["per_seed"][0]["tried"]
    chosen = max(tried, key=lambda name: tried[name]["held_out_miou"])
    (alone,) = rows(bench, *words, "--set", f"kmeans.{chosen}")
    assert alone["per_seed"][0]["scores"] == searched["per_seed"][0]["scores"]


def test_objects_are_searched_too(bench, data):
    words = ("--method", "maskcontrast@random", "--set", "maskcontrast.arch=small", "--protocol", "kmeans")
    (row,) = rows(bench, *words, "--dataset", data, "--seeds", 1, "--set", "kmeans.tap=search")
    assert len(row["per_seed"][0]["tried"]) > 1
    assert any(note.startswith("objects: ") for note in row["notes"])


def test_a_searched_row_paints_pictures_with_its_layer(bench, method, data, tmp_path):
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--seeds", 1, "--save-predictions")
    (row,) = rows(bench, *words, "--set", "kmeans.tap=search")
    (saved,) = (tmp_path / "results").glob(f"{row['key']}*-predictions")
    pictures = sorted((data / "JPEGImages").glob("val*.jpg"))
    status, _, err = bench("predict", *pictures, "--method", method, "--row", row["key"], "--output", tmp_path / "maps")
    assert status == 0, err
    for picture in pictures:
        painted = np.array(Image.open(tmp_path / "maps" / f"{picture.stem}.png"))
        assert np.array_equal(painted, np.array(Image.open(saved / f"{picture.stem}.png")))


def test_the_probe_may_choose_on_the_scored_split(bench, method, data):
    words = ("--method", method, "--protocol", "linear:cached", "--dataset", data, "--set", "linear.epochs=3")
    (row,) = rows(bench, *words, "--set", "linear.tap=search", "--set", "linear.choose_on=scored")
    tried = row["per_seed"][0]["tried"]
    assert all("held_out_miou" not in figures for figures in tried.values())
    best = max(tried, key=lambda name: tried[name]["miou"])
    assert any(note.startswith(f"chosen by the scored split itself: {best}; ") for note in row["notes"])
    assert row["per_seed"][0]["scores"]["as_predicted"]["miou"] == tried[best]["miou"]


BAD = {
    "nothing to choose": (("kmeans", "--set", "kmeans.choose_on=scored"), "there is one: name several"),
    "nothing to choose in a probe": (
        ("linear:cached", "--set", "linear.choose_on=scored", "--set", "linear.lr=0.1"),
        "there is one of each",
    ),
    "unknown layer": (("kmeans", "--set", "kmeans.tap=place,colour2"), "'colour2'. Did you mean 'colour'?"),
    "a layer twice": (("linear:cached", "--set", "linear.tap=place,place"), "names 'place' twice"),
    "a protocol of one map": (("hummingbird", "--set", "hummingbird.tap=search"), "hummingbird reads one map"),
    "train is scored": (("kmeans", "--set", "kmeans.tap=search", "--split", "train"), "the one to be scored"),
    "no such choice": (("kmeans", "--set", "kmeans.tap=search", "--set", "kmeans.choose_on=val"), "train, scored"),
}


@pytest.mark.parametrize(("words", "wanted"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_told_in_one_line(bench, method, data, words, wanted):
    status, _, err = bench("eval", "--method", method, "--dataset", data, "--protocol", *words)
    assert (status, wanted in err) == (2, True), err
    assert "Traceback" not in err


def test_maps_of_two_kinds_are_not_compared(bench, data):
    words = ("--method", "iic@random", "--set", "iic.width=4", "--protocol", "kmeans", "--dataset", data)
    status, _, err = bench("eval", *words, "--set", "kmeans.tap=head_B,trunk")
    assert (status, "head_B (cluster_prob), trunk (feature)" in err) == (2, True), err


def test_one_picture_to_learn_from_cannot_be_held_out(bench, method, tmp_path):
    data = make_voc(tmp_path / "one", train=1)
    words = ("--method", method, "--protocol", "kmeans", "--dataset", data, "--set", "kmeans.tap=search")
    status, _, err = bench("eval", *words)
    assert (status, "there is 1 picture with labels to train on" in err) == (2, True), err


def test_pictures_without_labels_cannot_choose(bench, method, data):
    pictures = sorted((data / "JPEGImages").glob("val*.jpg"))
    status, _, err = bench("predict", *pictures, "--method", method, "--clusters", 3, "--set", "kmeans.tap=search")
    assert (status, "there are no labels to choose a map by" in err) == (2, True), err
