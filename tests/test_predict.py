"""`bench predict`: by a row its own pictures are painted as the row scored them; by K-means any pictures are."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

OBJECTS = ("maskcontrast@random", "--set", "maskcontrast.arch=small")
RESNET = ("timm:resnet18@random",)


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def pictures_of(voc: Path) -> list[Path]:
    return [voc / "JPEGImages" / f"val{index}.jpg" for index in range(6)]


def scored(bench, voc: Path, *words: object) -> dict:
    """The row of a command, its predictions saved beside it."""
    status, out, err = bench("eval", "--dataset", voc, "--seeds", 1, "--save-predictions", "--json", *words)
    assert status == 0, err
    (row,) = json.loads(out)
    return row


@pytest.mark.parametrize(
    ("method", "protocol"),
    [
        (RESNET, ("kmeans",)),
        (RESNET, ("kmeans", "--set", "kmeans.normalize=standardize", "--set", "kmeans.pca=0")),
        (RESNET, ("overclustering", "--clusters", 9)),
        (OBJECTS, ("kmeans",)),
        (OBJECTS, ("kmeans", "--set", "kmeans.unit=pixel", "--set", "kmeans.background=saliency")),
        (OBJECTS, ("kmeans:released-code", "--size", 64)),
        (OBJECTS, ("retrieval",)),
    ],
)
def test_a_row_paints_its_own_pictures_as_it_scored_them(bench, voc, tmp_path, method, protocol):
    row = scored(bench, voc, "--method", *method, "--protocol", *protocol)
    maps = tmp_path / "maps"
    status, out, err = bench(
        "predict", *pictures_of(voc), "--method", method[0], "--row", row["key"][:9], "--output", maps
    )
    assert (status, out.strip()) == (0, str(maps)), err
    (saved,) = Path(os.environ["DENSEBENCH_RESULTS"]).glob(f"{row['key']}*-predictions")
    for path in pictures_of(voc):
        assert np.array_equal(read(maps / f"{path.stem}.png"), read(saved / f"{path.stem}.png"))
    legend = list(csv.DictReader((maps / "legend.csv").open()))
    assert [line["name"] for line in legend] == ["background", "left", "right"]


def test_clusters_of_the_pictures_given(bench, voc, tmp_path):
    """Objects of two colours, and of a folder without labels or lists."""
    maps = tmp_path / "maps"
    status, _, err = bench(
        "predict", voc / "JPEGImages", "--method", "colour", "--clusters", 3, "--output", maps, "--size", 64
    )
    assert status == 0, err
    assert len(list(maps.glob("*.png"))) == 10
    agreed = 0
    for path in pictures_of(voc):
        painted, label = read(maps / f"{path.stem}.png"), read(voc / "SegmentationClass" / f"{path.stem}.png")
        assert painted.shape == label.shape
        ids = [np.bincount(painted[label == value]).argmax() for value in range(3)]
        agreed += len(set(ids)) == 3
    assert agreed >= 5
    assert (maps / "legend.csv").read_text().splitlines()[1] == "0,cluster 0,#800000"


def test_clusters_of_objects_leave_the_rest_apart(bench, voc, tmp_path):
    maps = tmp_path / "maps"
    status, _, err = bench(
        "predict", *pictures_of(voc), "--method", *OBJECTS, "--clusters", 2, "--output", maps, "--seed", 3
    )
    assert status == 0, err
    assert [line["name"] for line in csv.DictReader((maps / "legend.csv").open())] == [
        "not foreground",
        "cluster 0",
        "cluster 1",
    ]
    for path in pictures_of(voc):
        assert len(set(np.unique(read(maps / f"{path.stem}.png"))) - {0}) <= 1


def test_without_output_a_new_folder_is_made(bench, voc):
    first, second = (bench("predict", voc / "JPEGImages", "--method", "colour", "--clusters", 2)[1] for _ in range(2))
    assert first != second
    assert len(list(Path(second.strip()).glob("*.png"))) == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("PICTURES --method colour", "--row KEY"),
        ("PICTURES --method colour --row ab --clusters 3", "--row KEY"),
        ("PICTURES --method colour --clusters 0", "expected 1 to 254"),
        ("PICTURES --method colour --clusters 300", "expected 1 to 254"),
        ("PICTURES --method colour --row nothing", "there is no row 'nothing'"),
        ("PICTURES/.. --method colour --clusters 2", "holds no pictures directly in it"),
        ("absent.jpg --method colour --clusters 2", "absent.jpg does not exist"),
        ("PICTURES PICTURES/../SegmentationClass --method colour --clusters 2", "painted into one file"),
        ("PICTURES --method colour --clusters 2 --set kmeans.foreground=masks:x", "has no mask set 'x'"),
        ("PICTURES --method nothing --clusters 2", "nothing"),
    ],
)
def test_wrong_input(bench, voc, words, said):
    status, out, err = bench("predict", *words.replace("PICTURES", str(voc / "JPEGImages")).split())
    assert (status, out) == (2, "")
    assert said in err
    assert err.strip().splitlines()[-1].startswith("bench: ")


def test_a_row_of_another_method_or_of_other_weights(bench, voc):
    row = scored(bench, voc, "--method", *RESNET, "--protocol", "kmeans")
    asked = ("predict", voc / "JPEGImages", "--row", row["key"], "--method")
    status, _, err = bench(*asked, "colour")
    assert (status, "is of timm:resnet18, not of colour" in err) == (2, True)
    status, _, err = bench(*asked, "timm:resnet34@random")
    assert (status, "not of timm:resnet34" in err) == (2, True)
    status, _, err = bench(*asked, "timm:resnet18@random", "--set", "kmeans.pca=3")
    assert (status, "a row has its own settings" in err) == (2, True)


def test_a_row_of_masks_cannot_paint_pictures_without(bench, voc):
    (voc / "saliency_clean").mkdir()
    for path in (voc / "SegmentationClass").iterdir():
        Image.fromarray((np.isin(read(path), (1, 2)) * 255).astype(np.uint8)).save(voc / "saliency_clean" / path.name)
    row = scored(bench, voc, "--method", *RESNET, "--protocol", "kmeans", "--set", "kmeans.foreground=masks:clean")
    status, _, err = bench("predict", *pictures_of(voc), "--method", *RESNET, "--row", row["key"])
    assert (status, "mask" in err) == (2, True)
