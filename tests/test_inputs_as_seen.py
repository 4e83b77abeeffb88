"""Inputs that could be read as something else than a person sees: refused in one line, or said and kept in the row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import images, paths

Result = tuple[int, str, str]
REMEMBERS = ("eval", "--method", "noise", "--protocol", "hummingbird", "--seeds", 1)
KMEANS = ("eval", "--method", "colour", "--protocol", "kmeans", "--seeds", 1)


def refusal(result: Result) -> str:
    """The one line of a refusal; nothing may lie among the results."""
    status, out, err = result
    assert (status, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("bench: ")]
    assert lines == err.splitlines()[-1:], err
    assert not list(paths.results_root().rglob("*"))
    return lines[0]


def row_of(result: Result) -> dict:
    status, out, err = result
    assert status == 0, err
    [row] = json.loads(out)
    return row


def add_to_train(voc: Path, *names: str) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text(path.read_text() + "".join(f"{name}\n" for name in names))


@pytest.fixture
def no_network(monkeypatch):
    """No method may be built."""

    def build(*given: object) -> None:
        raise AssertionError("a method was built before its command was refused")

    for module in ("evaluate", "price", "doctor"):
        monkeypatch.setattr(f"bench.{module}.build", build, raising=False)


# --- pictures of the scored split in train ---------------------------------------------------------------------------

READERS = {
    "hummingbird": "noise hummingbird",
    "linear": "colour linear:cached",
    "finetune": "timm:resnet18@random finetune",
    "retrieval": "colour retrieval",
    "kmeans fitted on train": "colour kmeans --set kmeans.fit=train",
    "overclustering fitted on train": "colour overclustering --set overclustering.fit=train",
    "a map chosen on train": "timm:resnet18@random kmeans --set kmeans.tap=search --set kmeans.choose_on=train",
    "a reader after another": "colour kmeans --protocol linear:cached",
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
@pytest.mark.parametrize("reader", READERS)
def test_scored_pictures_in_train_are_refused(bench, voc, no_network, reader, dry):
    add_to_train(voc, "val3", "val1")
    method, protocol, *more = READERS[reader].split()
    line = refusal(bench("eval", "--dataset", voc, "--method", method, "--protocol", protocol, *more, *dry))
    assert "'train' lists 2 of the 6 pictures of 'val' too, the first is 'val1'" in line
    assert "take them off one of the two lists" in line
    assert "--allow-overlap" in line


def test_limited_lists_are_compared_as_they_are_read(bench, voc):
    add_to_train(voc, "val0")  # the fifth of train
    words = (*REMEMBERS, "--dataset", voc, "--json")
    assert "overlap" not in row_of(bench(*words, "--limit", 4))["run"]["dataset"]["train"]
    shutil.rmtree(paths.results_root())
    assert "lists 1 of the 5 pictures of 'val' too" in refusal(bench(*words, "--limit", 5))


def test_protocols_that_do_not_read_train_score_all(bench, voc):
    add_to_train(voc, "val1")
    row = row_of(bench(*KMEANS, "--dataset", voc, "--json"))
    assert row["run"]["dataset"]["pictures"] == 6
    assert not any("lists" in note for note in row["notes"])


def test_an_overlap_that_is_meant_enters_the_row(bench, voc):
    words = (*REMEMBERS, "--dataset", voc, "--json")
    plain, meant = row_of(bench(*words)), row_of(bench(*words, "--allow-overlap"))
    assert plain["key"] == meant["key"]  # nothing overlaps
    assert set(plain["run"]["dataset"]["train"]) == {"split", "fingerprint"}
    add_to_train(voc, "val0", "val4")
    row = row_of(bench(*words, "--allow-overlap"))
    assert row["run"]["dataset"]["train"]["overlap"] == 2
    assert "'train' lists 2 of the 6 scored pictures too (--allow-overlap)" in row["notes"]
    status, out, _ = bench("table", "--format", "markdown")
    assert status == 0
    assert "'train' lists 2 of the 6 scored pictures too" in out.replace("\\", "")


def test_the_train_split_is_scored_where_that_is_meant(bench, voc):
    words = (*REMEMBERS, "--dataset", voc, "--split", "train", "--json")
    assert "hummingbird learns from the split train, which is the one to be scored" in refusal(bench(*words))
    fitted = (*KMEANS, "--set", "kmeans.fit=train", "--dataset", voc, "--split", "train")
    assert "kmeans learns from the split train" in refusal(bench(*fitted))
    row = row_of(bench(*words, "--allow-overlap"))
    assert row["run"]["dataset"]["train"]["overlap"] == 4
    assert row["mean"]["scores"]["as_predicted"]["miou"] > 0.8


def copy_of_a_scored_picture(voc: Path) -> None:
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        shutil.copy(voc / folder / f"val2.{suffix}", voc / folder / f"again.{suffix}")
    add_to_train(voc, "again")


def test_equal_pictures_under_other_names_are_counted_and_said(bench, voc):
    copy_of_a_scored_picture(voc)
    said = "'train' holds 1 of the 6 pictures of 'val' under other names, byte for byte, the first is 'val2' = 'again'"
    result = bench(*REMEMBERS, "--dataset", voc, "--json")
    assert result[2].count(said) == 1
    row = row_of(result)
    assert said in row["notes"]
    assert "overlap" not in row["run"]["dataset"]["train"]
    status, _, err = bench(*REMEMBERS, "--dataset", voc, "--dry-run")
    assert (status, err.count(said)) == (0, 1)
    assert not any(said in note for note in row_of(bench(*KMEANS, "--dataset", voc, "--json"))["notes"])


def test_doctor_compares_the_splits(bench, voc):
    copy_of_a_scored_picture(voc)
    add_to_train(voc, "val1")
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    found = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert len(found) == 2
    assert "'train' lists 1 of the 6 pictures of 'val' too, the first is 'val1'" in found[0]
    assert "'val2' = 'again'" in found[1]


# --- masks and label maps --------------------------------------------------------------------------------------------

COMMANDS = {
    "kmeans": "eval --method colour --protocol kmeans --set kmeans.foreground=masks:mine",
    "retrieval": "eval --method colour --protocol retrieval --set retrieval.foreground=masks:mine",
    "train": "train maskcontrast --masks mine --steps 1",
    "doctor": "doctor",
}


def write_masks(voc: Path, stored: Callable[[np.ndarray], Image.Image]) -> None:
    (voc / "saliency_mine").mkdir()
    for path in (voc / "SegmentationClass").iterdir():
        label = images.read_label(path)
        stored(np.where(label == 255, 0, label)).save(voc / "saliency_mine" / path.name)


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_that_nobody_can_tell_are_refused_by_every_command(bench, voc, command):
    write_masks(voc, lambda label: Image.fromarray(np.where(label > 0, label + 6, 0).astype(np.uint8)))
    words = (*COMMANDS[command].split(), "--dataset", voc)
    if command == "doctor":
        status, out, _ = bench(*words, "--device", "cpu")
        assert status == 2
        assert out.count("holds the greys 0, 7, 8, so nobody can tell its foreground") == 10
    else:
        assert "holds the greys 0, 7, 8, so nobody can tell its foreground" in refusal(bench(*words))


def test_masks_score_alike_however_they_are_stored(bench, voc):
    """As 0 and 255; through a palette with white first; as the alpha of a white picture."""

    def white(label: np.ndarray) -> Image.Image:
        return Image.fromarray(np.where(label > 0, 255, 0).astype(np.uint8))

    def palette(label: np.ndarray) -> Image.Image:
        image = Image.fromarray((label == 0).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        return image

    def alpha(label: np.ndarray) -> Image.Image:
        return Image.merge("LA", (Image.new("L", label.shape[::-1], 255), white(label)))

    figures = []
    for stored in (white, palette, alpha):
        write_masks(voc, stored)
        words = COMMANDS["kmeans"].split()
        figures.append(row_of(bench(*words, "--seeds", 1, "--dataset", voc, "--json"))["per_seed"])
        shutil.rmtree(voc / "saliency_mine")
    assert figures[1] == figures[0]
    assert figures[2] == figures[0]


def void_objects(voc: Path) -> None:
    for path in (voc / "SegmentationClass").iterdir():
        label = images.read_label(path)
        images.write_label(path, np.where(label > 0, 255, 0))


def test_classes_that_occur_nowhere_are_said_and_kept(bench, voc):
    void_objects(voc)
    said = "val: no pixel of 2 of 3 classes: left (1), right (2) (255 is void: where it is meant as an object, write 1)"
    result = bench(*KMEANS, "--method", "noise", "--dataset", voc)
    assert result[0] == 0
    assert result[2].count(said) == 1
    assert said in result[1]
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    assert f"FAIL {said}; correct the label maps" in out


def test_some_classes_that_occur_nowhere(bench, voc):
    (voc / "classes.txt").write_text("background\nleft\nright\nup\n")
    row = row_of(bench(*KMEANS, "--dataset", voc, "--json"))
    assert "val: no pixel of 1 of 4 classes: up (3)" in row["notes"]
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 0
    assert "6 pictures and their masks opened, 4 classes; no pixel of 1 of 4 classes: up (3)" in out


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_a_data_set_of_one_class_is_refused(bench, voc, no_network, dry):
    void_objects(voc)
    (voc / "classes.txt").unlink()
    line = refusal(bench(*KMEANS, "--dataset", voc, *dry))
    assert "has the one class '0', so every prediction is right" in line
    assert "255 is void: where it is meant as an object, write 1" in line
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    assert "has the one class '0'" in out


@pytest.mark.parametrize("number", [255, 256, 300])
@pytest.mark.parametrize("protocol", ["kmeans", "linear:cached", "hummingbird"])
def test_more_classes_than_a_byte_holds_are_refused(bench, voc, no_network, number, protocol):
    (voc / "classes.txt").write_text("".join(f"c{index}\n" for index in range(number)))
    for more in ((), ("--dry-run",)):
        line = refusal(bench("eval", "--method", "oracle", "--protocol", protocol, "--dataset", voc, *more))
        assert f"classes.txt: {number} classes; expected at most 254" in line
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    assert out.count("expected at most 254") == 1


def test_lists_that_cannot_be_read_are_not_taken_for_none(bench, voc):
    lists = voc / "ImageSets" / "Segmentation"
    shutil.rmtree(lists)
    lists.write_text("val0\n")
    line = refusal(bench(*KMEANS, "--dataset", voc))
    assert f"the folder {lists} cannot be read (Not a directory)" in line
    status, out, _ = bench("doctor", "--dataset", voc, "--device", "cpu")
    assert status == 2
    assert str(lists) in out
