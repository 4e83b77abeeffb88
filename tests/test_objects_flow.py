"""Objects from the command line to rows, tables and predictions."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import paths, registry

SMALL = ("--method", "maskcontrast@random", "--set", "maskcontrast.arch=small")


@pytest.fixture
def masked(voc: Path) -> Path:
    """The small data set with two sets of masks: what is not background, and nothing."""
    for name, empty in (("true", False), ("empty", True)):
        (voc / f"saliency_{name}").mkdir()
        for path in sorted((voc / "SegmentationClass").glob("*.png")):
            label = np.array(Image.open(path))
            mask = np.where((label > 0) & (not empty), 255, 0).astype(np.uint8)
            Image.fromarray(mask).save(voc / f"saliency_{name}" / path.name)
    return voc


@pytest.fixture
def retrieval(monkeypatch) -> None:
    """The protocol, registered whatever the installed entry points are."""
    point = EntryPoint("retrieval", "bench.protocols.retrieval:CARD", "bench.protocols")
    points = registry._points

    def with_retrieval(kind: str) -> dict[str, EntryPoint]:
        return {**points(kind), **({"retrieval": point} if kind == "protocols" else {})}

    monkeypatch.setattr(registry, "_points", with_retrieval)
    monkeypatch.setattr(registry, "origin", lambda kind, name: "densebench")


def rows_of(result: tuple[int, str, str]) -> list[dict[str, Any]]:
    status, out, err = result
    assert status == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def evaluated(bench, data: Path, *words: object) -> list[dict[str, Any]]:
    return rows_of(bench("eval", "--dataset", data, "--seeds", 1, "--json", *words))


def refused(result: tuple[int, str, str]) -> str:
    status, _, err = result
    assert status == 2, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


KMEANS = ("--protocol", "kmeans")


def test_masks_give_objects_to_any_method(bench, masked):
    rows = evaluated(
        bench, masked, "--method", "oracle", "--method", "colour", *KMEANS, "--set", "kmeans.foreground=masks:true"
    )
    for row in rows:
        scores = row["per_seed"][0]["scores"]["one_to_one_iou"]
        # every picture holds both classes, one object each: its foreground is one of them at best
        assert scores["iou"][0] == 1.0
        assert row["notes"][0].startswith("objects: mean embedding of the masks true")
        assert row["run"]["dataset"]["masks"]["set"] == "true"
    empty = evaluated(bench, masked, "--method", "colour", *KMEANS, "--set", "kmeans.foreground=masks:empty")[0]
    assert "none of the 6 pictures has a foreground: everything is background" in empty["notes"]
    assert empty["per_seed"][0]["scores"]["one_to_one_iou"]["iou"][1:] == [0.0, 0.0]


def test_a_method_with_a_foreground_is_scored_by_objects_and_the_table_says_so(bench, masked):
    words = ("eval", "--dataset", masked, "--seeds", 2, *SMALL, "--method", "colour", *KMEANS)
    status, out, err = bench(*words)
    assert status == 0, err
    assert "the method's own foreground" in " ".join(out.split())
    rows = {row["run"]["method"]: row for row in rows_of(bench(*words, "--json"))}
    assert rows["maskcontrast"]["run"]["settings"]["unit"] == "auto"
    assert {"objects", "pictures_without_foreground"} <= set(rows["maskcontrast"]["per_seed"][0])
    status, out, _ = bench("table", "--format", "csv")
    assert status == 0


def test_one_forward_pass_serves_all(bench, masked, monkeypatch, retrieval):
    passes: list[tuple[str, ...]] = []
    from bench.adapters._maskcontrast import MaskContrastBackbone

    real = MaskContrastBackbone.maps
    monkeypatch.setattr(
        MaskContrastBackbone, "maps", lambda self, x, taps: passes.append(tuple(taps)) or real(self, x, taps)
    )
    words = ("--protocol", "overclustering", "--clusters", "3,4", "--protocol", "retrieval", "--batch-size", 1)
    evaluated(bench, masked, *SMALL, *KMEANS, *words)
    assert set(passes) == {("embedding", "saliency")}
    assert len(passes) == 6 + 4
    passes.clear()
    evaluated(bench, masked, *SMALL, *KMEANS, *words, "--set", "threshold=-0.1", "--set", "foreground=adapter")
    assert passes == []
    pixels = evaluated(bench, masked, *SMALL, *KMEANS, "--set", "kmeans.background=cluster", "--batch-size", 1)[0]
    assert passes == []
    assert "objects" not in pixels["per_seed"][0]


def test_a_random_embedding_has_the_same_foreground(bench, masked):
    how = (*KMEANS, "--set", "kmeans.threshold=-0.5", "--set", "kmeans.fit=train")
    trained = evaluated(bench, masked, *SMALL, *how)[0]
    random = evaluated(bench, masked, *SMALL, *how, "--set", "maskcontrast.embedding=random")[0]
    for name in ("objects", "pictures_without_foreground"):
        assert trained["per_seed"][0][name] == random["per_seed"][0][name]
    assert trained["run"]["options"] != random["run"]["options"]
    assert "train" in trained["run"]["dataset"]


def test_retrieval(bench, masked, retrieval):
    words = ("--protocol", "retrieval", "--set", "foreground=masks:true")
    row = evaluated(bench, masked, "--method", "oracle", *words, "--seeds", 3)[0]
    assert row["seeds"] == [0]
    assert row["headline"] == {"rule": "as_predicted", "metric": "miou"}
    figures = row["per_seed"][0]
    assert figures["held_out"] is None
    assert figures["keys"] == 4
    assert figures["scores"]["as_predicted"]["iou"][0] == 1.0
    assert {"train", "masks"} <= set(row["run"]["dataset"])
    status, out, err = bench("table")
    assert status == 0, err
    assert "retrieval" in out
    assert "as_predicted" not in out


def test_predictions_of_objects_are_their_counts(bench, masked, retrieval):
    words = (*SMALL, *KMEANS, "--set", "threshold=-0.1", "--save-predictions")
    evaluated(bench, masked, *words, "--protocol", "retrieval")
    evaluated(bench, masked, *words, "--set", "unit=pixel", "--set", "background=saliency")
    folders = sorted(paths.results_root().glob("*-predictions"))
    assert len(folders) == 3
    for folder in folders:
        row = json.loads((folder.parent / f"{folder.name.removesuffix('-predictions')}.json").read_text())
        scores = row["per_seed"][0]["scores"][row["headline"]["rule"]]
        hits, pixels = 0, 0
        for path in sorted(folder.glob("*.png")):
            predicted = np.array(Image.open(path))
            label = np.array(Image.open(masked / "SegmentationClass" / path.name))
            assert predicted.shape == label.shape
            hits += int(((predicted == label) & (label != 255)).sum())
            pixels += int((label != 255).sum())
        assert hits / pixels == pytest.approx(scores["pixel_accuracy"])


def test_changed_masks_make_another_row(bench, masked):
    words = ("--method", "colour", *KMEANS, "--set", "kmeans.foreground=masks:true")
    before = evaluated(bench, masked, *words)[0]
    assert evaluated(bench, masked, *words)[0]["key"] == before["key"]
    mask = masked / "saliency_true" / "val3.png"
    Image.fromarray(255 - np.array(Image.open(mask))).save(mask)
    assert evaluated(bench, masked, *words)[0]["key"] != before["key"]


REFUSED = {
    "no such masks": (("--set", "kmeans.foreground=masks:treu"), "no mask set 'treu'", "'true'", "empty, true"),
    "no such source": (("--set", "kmeans.foreground=maks:true"), "foreground=maks:true", "masks:NAME"),
    "objects without foreground": (("--set", "kmeans.unit=object"), "unit=object", "foreground=masks:NAME"),
    "adapter without foreground": (("--set", "kmeans.foreground=adapter"), "gives no foreground", "empty, true"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(bench, masked, case):
    words, *needles = REFUSED[case]
    line = refused(bench("eval", "--dataset", masked, "--method", "colour", *KMEANS, *words))
    for needle in needles:
        assert needle in line


def test_broken_and_missing_masks_are_found_before_any_forward_pass(bench, masked, monkeypatch):
    monkeypatch.setattr("bench.features.SplitMaps.compute", lambda self: pytest.fail("a forward pass was made"))
    words = ("eval", "--dataset", masked, "--method", "colour", *KMEANS, "--set", "kmeans.foreground=masks:true")
    mask = masked / "saliency_true" / "val3.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(mask)
    assert "val3.png is 9x9 pixels" in refused(bench(*words))
    mask.unlink()
    assert "1 of 6 pictures have no mask in the set true" in refused(bench(*words))


def test_retrieval_needs_a_foreground_and_another_split(bench, masked, retrieval):
    words = ("eval", "--dataset", masked, "--method", "colour", "--protocol", "retrieval")
    assert "give mask files with --set retrieval.foreground=masks:NAME" in refused(bench(*words))
    line = refused(bench(*words, "--set", "retrieval.foreground=masks:true", "--split", "train"))
    assert "choose another with --split" in line
    line = refused(bench(*words, "--set", "retrieval.foreground=masks:true", "--set", "retrieval.classes=seven"))
    assert "classes=seven" in line


def test_rows_of_the_released_code_match_one_to_one_at_the_number_of_classes(bench, masked):
    """Three classes and two K: the headline of each row is by the rule of its K."""
    words = ("--method", "colour", "--set", "foreground=masks:true", "--protocol")
    released = evaluated(bench, masked, *words, "overclustering:released-code", "--clusters", "2,3")
    assert [row["headline"]["rule"] for row in released] == ["many_to_one_iou", "one_to_one_iou"]
    assert [row["run"]["settings"]["matching"] for row in released] == ["many", "one"]
    native = evaluated(bench, masked, *words, "overclustering", "--clusters", "2,3")
    assert [row["headline"]["rule"] for row in native] == ["many_to_one_iou", "many_to_one_iou"]
    for row in (*released, *native):
        assert any(note.startswith("K-means: ") for note in row["notes"])
        assert {"restarts", "passes", "finished", "sample", "candidates"} <= set(row["run"]["settings"])
