"""Folders of pictures, labels and lists: what opens, what is refused, and with which words."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import datasets, images
from bench.contracts import Dataset
from bench.datasets.folder import FolderDataset, holds_dataset, occurrence
from bench.errors import DatasetError, StorageError, UnknownNameError
from bench.records import DatasetCard

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

SIZES = {"a": (6, 8), "b": (5, 9), "c": (7, 7), "d": (4, 4)}


def write_picture(path: Path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_grey(path: Path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def write_text(path: Path, text: str, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding)


@pytest.fixture
def voc(tmp_path):
    """Four pictures, three classes and void, lists train (a, b) and val (c, d)."""
    root = tmp_path / "set"
    for seed, (name, size) in enumerate(SIZES.items()):
        write_picture(root / "JPEGImages" / f"{name}.png", size, seed)
        label = np.random.default_rng(seed).integers(0, 3, size)
        label[0, 0], label[-1, -1] = 255, 2
        images.write_label(root / "SegmentationClass" / f"{name}.png", label)
    write_text(root / "ImageSets" / "Segmentation" / "train.txt", "a\nb\n")
    write_text(root / "ImageSets" / "Segmentation" / "val.txt", "d\nc\n")
    write_text(root / "classes.txt", "cat\nbackground\ndog\n")
    return root


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBENCH_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def test_voc_layout(voc):
    dataset = FolderDataset(voc)
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.default_preset) == ("set", "native")
    assert (dataset.train_split, dataset.eval_split) == ("train", "val")
    assert dataset.splits() == ("train", "val")
    assert dataset.names("val") == ("d", "c")  # in the order of the list
    assert dataset.classes == ("cat", "background", "dog")
    assert dataset.background == 1
    assert dataset.has_labels
    assert dataset.size("b") == dataset.picture("b").shape[:2] == dataset.label("b").shape == SIZES["b"]
    assert dataset.label("b").dtype == np.uint8
    assert dataset.pixels(["a", "b"]) == 6 * 8 + 5 * 9
    assert list(dataset.check("train")) == list(dataset.check("val")) == []


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2012", "VOC2012", "VOCSegmentation"])
def test_the_parent_folder_may_be_given(voc, tmp_path, inner):
    (tmp_path / "parent" / inner).parent.mkdir(parents=True)
    voc.rename(tmp_path / "parent" / inner)
    assert FolderDataset(tmp_path / "parent").root == tmp_path / "parent" / inner
    assert holds_dataset(tmp_path / "parent")
    assert not holds_dataset(tmp_path)


def test_the_folder_of_the_authors(tmp_path):
    root = tmp_path / "VOCSegmentation"
    write_picture(root / "images" / "x.jpg", (6, 6))
    write_text(root / "sets" / "trainaug.txt", "x\n")
    images.write_label(root / "SegmentationClassAug" / "x.png", np.full((6, 6), 20))
    write_grey(root / "saliency_supervised_model" / "x.png", np.eye(6) * 255)
    write_grey(root / "saliency_unsupervised_model" / "x.png", np.zeros((6, 6)))
    for folder in (tmp_path, root):
        dataset = FolderDataset(folder)
        assert dataset.splits() == ("trainaug",)
        assert dataset.mask_sets() == ("supervised", "unsupervised")
        np.testing.assert_array_equal(dataset.mask("x", "supervised"), np.eye(6, dtype=bool))
        assert not dataset.mask("x", "unsupervised").any()
        assert dataset.label("x").tolist() == [[20] * 6] * 6
    opened = datasets.open_dataset(str(root))
    assert (opened.name, len(opened.classes), opened.background) == ("voc", 21, 0)


def test_pictures_alone(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.jpg", "._b.jpg"):
        write_picture(tmp_path / "photos" / name, (5, 6))
    write_text(tmp_path / "photos" / "notes.txt", "no picture")
    dataset = FolderDataset(tmp_path / "photos")
    assert dataset.splits() == ("train",)
    assert dataset.names("train") == ("a", "b")
    assert dataset.train_split == dataset.eval_split == "train"
    assert (dataset.classes, dataset.background, dataset.has_labels) == ((), None, False)
    with pytest.raises(DatasetError, match=r"photos has no label maps: expected SegmentationClass"):
        dataset.label("a")
    with pytest.raises(DatasetError, match=r"has no label maps"):
        dataset.fingerprint(["a"], labels=True)
    assert list(dataset.check("train")) == []


def test_lists_are_optional_in_voc_layout(voc):
    import shutil

    shutil.rmtree(voc / "ImageSets")
    assert FolderDataset(voc).names("train") == ("a", "b", "c", "d")


def test_vocs_own_masks_win(voc):
    images.write_label(voc / "SegmentationClassAug" / "a.png", np.zeros(SIZES["a"], int))
    own = images.read_label(voc / "SegmentationClass" / "b.png")
    (voc / "SegmentationClass" / "b.png").rename(voc / "SegmentationClassAug" / "b.png")
    dataset = FolderDataset(voc)
    assert dataset.label("a").max() > 0
    np.testing.assert_array_equal(dataset.label("b"), own)


def test_classes_are_scanned_without_a_list(voc, caplog):
    (voc / "classes.txt").unlink()
    dataset = FolderDataset(voc)
    with caplog.at_level(logging.INFO, "bench"):
        assert dataset.classes == ("0", "1", "2")
    assert dataset.background is None
    assert "3 classes (0 to 2)" in caplog.text


def test_numbers_that_are_left_out_are_said(voc, caplog):
    (voc / "classes.txt").unlink()
    for name, size in SIZES.items():
        label = np.zeros(size, int)
        label[0], label[1] = 5, 10
        images.write_label(voc / "SegmentationClass" / f"{name}.png", label)
    with caplog.at_level(logging.INFO, "bench"):
        assert len(FolderDataset(voc).classes) == 11
    assert (
        "its labels hold the numbers 0, 5, 10, so that 11 classes (0 to 10) are scored, of which 8 occur" in caplog.text
    )


def void_objects(voc):
    """Label maps of 0 and 255, as binary masks are stored."""
    for path in (voc / "SegmentationClass").iterdir():
        label = images.read_label(path)
        images.write_label(path, np.where(label > 0, 255, 0))


def test_one_class_is_none(voc):
    void_objects(voc)
    (voc / "classes.txt").unlink()
    refused(
        r"has the one class '0', so every prediction is right.*255 is void.*write 1", FolderDataset(voc).check_classes
    )
    write_text(voc / "classes.txt", "thing\n")
    refused(r"has the one class 'thing'.*classes\.txt", FolderDataset(voc).check_classes)
    (voc / "classes.txt").unlink()
    (voc / "classes.txt").symlink_to(voc / "gone")
    refused(r"classes\.txt cannot be read", FolderDataset(voc).check_classes)
    (voc / "classes.txt").unlink()
    write_text(voc / "classes.txt", "thing\nother\n")
    FolderDataset(voc).check_classes()


def test_classes_without_a_pixel(voc):
    every = ("cat", "background", "dog")
    assert occurrence(every, {0, 1, 2}) == ""
    assert occurrence(every, {0, 2}) == "no pixel of 1 of 3 classes: background (1)"
    alone = occurrence(every, {0})
    assert alone.startswith("no pixel of 2 of 3 classes: background (1), dog (2) (255 is void")
    assert occurrence([str(number) for number in range(20)], set()).endswith("6 (6), 7 (7) and 12 more")
    seen = set()
    assert list(FolderDataset(voc).check("val", occurring=seen)) == []
    assert seen == {0, 1, 2}
    void_objects(voc)
    assert list(FolderDataset(voc).check("val")) == [f"val: {alone}; correct the label maps"]


@pytest.mark.parametrize("number", [255, 256, 300])
def test_more_classes_than_a_byte_holds(voc, number):
    write_text(voc / "classes.txt", "".join(f"c{index}\n" for index in range(number)))
    pattern = rf"classes\.txt: {number} classes; expected at most 254"
    refused(pattern, lambda: FolderDataset(voc).classes)
    refused(pattern, FolderDataset(voc).label, "a")
    card = DatasetCard(
        name="many",
        summary="",
        prepare="",
        classes=tuple(map(str, range(number))),
        background=None,
        default_preset="paper",
    )
    refused(rf"many: {number} classes", lambda: FolderDataset(voc, card=card).classes)
    write_text(voc / "classes.txt", "".join(f"c{index}\n" for index in range(254)))
    assert FolderDataset(voc).label("a").max() == 255


def test_a_label_of_a_class_too_many_without_a_list(voc):
    (voc / "classes.txt").unlink()
    images.write_label(voc / "SegmentationClass" / "a.png", np.full(SIZES["a"], 254))
    refused(r"label maps of .*set: 255 classes", lambda: FolderDataset(voc).classes)


def test_a_background_of_another_spelling_is_said(voc, caplog):
    write_text(voc / "classes.txt", "_Background_\ncat\ndog\n")
    with caplog.at_level(logging.INFO, "bench"):
        assert FolderDataset(voc).background is None
    assert "the class '_Background_' is like any other; call it 'background'" in caplog.text


def test_palettes_that_were_sorted_anew_are_refused(voc):
    """Two maps in the same colours, the second saved with another order of its palette: indices are no classes."""
    dataset = FolderDataset(voc)
    assert dataset.label("a").max() == 255
    path = voc / "SegmentationClass" / "b.png"
    swap = np.arange(256)
    swap[[0, 1]] = 1, 0
    images.write_label(path, swap[images.read_label(path)], images.voc_palette()[swap])
    refused(r"the colour #800000 is number 0 in the palette of .*b\.png and 1 in that of a\.png", dataset.label, "b")
    assert FolderDataset(voc).label("b").max() == 255
    assert any("sorted anew" in problem for problem in FolderDataset(voc).check("train"))


def test_palettes_of_one_colour_say_nothing(voc):
    for seed, name in enumerate("ab"):
        label = np.random.default_rng(seed).integers(0, 3, SIZES[name])
        images.write_label(voc / "SegmentationClass" / f"{name}.png", label, np.full((256, 3), 9, np.uint8))
    dataset = FolderDataset(voc)
    assert {dataset.label(name).max() for name in "ab"} == {2}


def test_a_card_gives_names_and_splits(voc):
    card = DatasetCard(
        name="demo",
        summary="",
        prepare="",
        classes=("background", "x", "y"),
        background=None,
        default_preset="paper",
        train_split="val",
        eval_split="train",
    )
    dataset = FolderDataset(voc, card=card)
    assert (dataset.name, dataset.classes, dataset.background) == ("demo", card.classes, None)
    assert (dataset.default_preset, dataset.train_split, dataset.eval_split) == ("paper", "val", "train")


def refused(pattern, call, *arguments, **options):
    with pytest.raises(DatasetError, match=pattern) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_nothing(tmp_path):
    refused(r"absent does not exist", FolderDataset, tmp_path / "absent")
    refused(r"holds no data set: expected JPEGImages/", FolderDataset, tmp_path)
    write_text(tmp_path / "file", "")
    refused(r"file is a file, not a folder", FolderDataset, tmp_path / "file")
    (tmp_path / "JPEGImages").mkdir()
    refused(r"JPEGImages holds no pictures", FolderDataset, tmp_path)


def test_lists_that_cannot_be_used(voc):
    lists = voc / "ImageSets" / "Segmentation"
    write_text(lists / "empty.txt", "\n  \n")
    write_text(lists / "twice.txt", "a\nb\na\n")
    write_text(lists / "ghost.txt", "a\nghost\n")
    (lists / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    dataset = FolderDataset(voc)
    refused(r"no split 'test', there are: bytes, empty, ghost, train, twice, val", dataset.names, "test")
    refused(r"empty\.txt is empty", dataset.names, "empty")
    refused(r"twice\.txt holds the picture 'a' more than once", dataset.names, "twice")
    for _ in range(2):  # a failure is not remembered as success
        refused(r"ghost\.txt lists 'ghost', but .*JPEGImages has no such picture", dataset.names, "ghost")
    refused(r"bytes\.txt cannot be read", dataset.names, "bytes")
    assert next(dataset.check("ghost")).startswith(str(lists / "ghost.txt"))


def test_lists_that_cannot_be_seen_are_not_taken_for_none(voc, monkeypatch):
    lists = voc / "ImageSets" / "Segmentation"
    scandir = os.scandir
    for hidden in (lists, lists.parent, voc / "JPEGImages", voc / "SegmentationClass"):

        def closed(path, hidden=hidden):
            if Path(path) == hidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return scandir(path)

        monkeypatch.setattr("os.scandir", closed)
        (voc / "classes.txt").unlink(missing_ok=True)
        refused(rf"{hidden} cannot be read \(Permission denied\)", lambda: FolderDataset(voc).classes)
        if hidden.name != "SegmentationClass":
            refused(rf"{hidden} cannot be read", holds_dataset, voc)
    monkeypatch.undo()
    assert FolderDataset(voc).splits() == ("train", "val")


def test_label_maps_behind_a_closed_folder(voc, monkeypatch):
    exists = Path.exists
    folder = voc / "SegmentationClass"

    def closed(path):
        if path.parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", closed)
    monkeypatch.setattr(Path, "is_dir", lambda path: closed(path) if path.parent == folder else True)
    refused(
        rf"{folder}/inside cannot be looked for: change the permissions of {folder}/inside",
        FolderDataset,
        folder / "inside",
    )
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", closed)
    refused(rf"a\.png cannot be looked for: change the permissions of {folder}", FolderDataset(voc).label, "a")


def test_lists_that_are_no_folder_or_lie_elsewhere(voc):
    sets = voc / "ImageSets"
    lists = sets / "Segmentation"
    lists.rename(voc / "aside")
    write_text(lists, "a\nb\n")
    refused(rf"{lists} cannot be read \(Not a directory\)", FolderDataset, voc)
    lists.unlink()
    lists.symlink_to(voc / "gone")
    refused(rf"{lists} cannot be read \(No such file", FolderDataset, voc)
    lists.unlink()
    write_text(sets / "val.txt", "c\nd\n")
    refused(rf"{sets} holds val\.txt, but the lists of splits are expected in {lists}/", FolderDataset, voc)
    (sets / "val.txt").unlink()
    write_text(lists / "val.lst", "c\nd\n")
    refused(rf"{lists} holds no list: expected SPLIT\.txt .*found val\.lst", FolderDataset, voc)
    (lists / "val.lst").unlink()
    assert FolderDataset(voc).splits() == ("train",)  # an empty folder says nothing
    lists.rmdir()
    sets.rmdir()
    write_text(sets, "a\n")
    refused(rf"{sets} cannot be read \(Not a directory\)", FolderDataset, voc)


def test_twins_are_equal_files_of_two_names(voc):
    dataset = FolderDataset(voc)
    assert dataset.twins(("c", "d"), ("a", "b")) == ()
    for copy, name in (("e", "a"), ("f", "a"), ("g", "b")):
        (voc / "JPEGImages" / f"{copy}.png").write_bytes((voc / "JPEGImages" / f"{name}.png").read_bytes())
    write_picture(voc / "JPEGImages" / "h.bmp", SIZES["a"], 5)
    write_picture(voc / "JPEGImages" / "i.bmp", SIZES["a"], 6)  # of one length, and another picture
    dataset = FolderDataset(voc)
    assert dataset.twins(("c", "e", "f", "h"), ("a", "b", "i")) == (("e", "a"), ("f", "a"))
    assert dataset.twins(("a", "g"), ("a", "b")) == (("g", "b"),)  # a name in both is no twin


def test_blank_lines_windows_ends_and_byte_order_marks_are_skipped(voc):
    path = voc / "ImageSets" / "Segmentation" / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \r\n")
    assert FolderDataset(voc).names("odd") == ("a", "b")


def test_two_pictures_of_one_name(voc):
    write_picture(voc / "JPEGImages" / "a.jpg", SIZES["a"])
    dataset = FolderDataset(voc)
    refused(r"holds a\.jpg and a\.png: keep one", dataset.names, "train")
    assert dataset.names("val") == ("d", "c")


def test_labels_that_do_not_fit(voc):
    dataset = FolderDataset(voc)
    dataset.names("train")
    images.write_label(voc / "SegmentationClass" / "a.png", np.zeros((8, 6), int))
    refused(r"a\.png is 6x8 pixels.* its picture .*a\.png is 8x6", dataset.label, "a")
    images.write_label(voc / "SegmentationClass" / "b.png", np.full(SIZES["b"], 3))
    refused(r"b\.png holds the value 3, but set has 3 classes .*classes\.txt", dataset.label, "b")
    (voc / "SegmentationClass" / "a.png").unlink()
    refused(r"train\.txt lists 'a', but there is no label map a\.png in SegmentationClass/", dataset.label, "a")
    refused(r"train\.txt lists 'a'", dataset.fingerprint, ["a"], labels=True)
    assert dataset.fingerprint(["a"], labels=False)


def test_mask_values_and_sizes(voc):
    grey = np.zeros(SIZES["a"])
    grey[0, :4] = 0, 127, 128, 255
    write_grey(voc / "saliency_x" / "a.png", grey)
    write_grey(voc / "saliency_ones" / "b.png", np.eye(5, 9))
    write_grey(voc / "saliency_x" / "c.png", np.zeros((7, 8)))
    dataset = FolderDataset(voc)
    np.testing.assert_array_equal(dataset.mask("a", "x"), grey > 127)
    np.testing.assert_array_equal(dataset.mask("b", "ones"), np.eye(5, 9, dtype=bool))
    refused(r"c\.png is 8x7 pixels.*is 7x7", dataset.mask, "c", "x")
    refused(r"mask set 'x' has no mask of 'd'", dataset.mask, "d", "x")
    refused(r"no mask set 'y', there are: ones, x", dataset.mask, "a", "y")
    assert dataset.has_mask("a", "x")
    assert not dataset.has_mask("d", "x")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_set_of_masks_has_one_scale(voc, order):
    """Beside masks up to 255, a 1 is a probability of 1/255."""
    write_grey(voc / "saliency_x" / "a.png", np.eye(6, 8) * 255)
    write_grey(voc / "saliency_x" / "b.png", np.eye(5, 9))
    for name in "cd":  # no foreground on either scale
        write_grey(voc / "saliency_x" / f"{name}.png", np.zeros(SIZES[name]))
    dataset = FolderDataset(voc)
    assert not dataset.mask("c", "x").any()
    assert dataset.mask(order[0], "x").any()
    assert not dataset.mask("d", "x").any()
    refused(r"saliency_x/b\.png holds 0 and 1 alone and a\.png .*up to 255", dataset.mask, order[1], "x")
    assert any("one scale" in problem for problem in FolderDataset(voc).check("train"))


def test_masks_that_are_none_are_found_by_check(voc):
    write_grey(voc / "saliency_x" / "a.png", np.eye(6, 8) * 7)
    [problem] = FolderDataset(voc).check("train")
    assert "saliency_x/a.png holds the greys 0, 7," in problem


def test_fingerprint_follows_content_names_and_order(voc):
    dataset = FolderDataset(voc)
    first = dataset.fingerprint(("a", "b"), labels=True)
    assert first == FolderDataset(voc).fingerprint(("a", "b"), labels=True)

    def digest(name, *folders):
        parts = [hashlib.sha256((voc / f / f"{name}.png").read_bytes()).digest() for f in folders]
        return name.encode() + b"\0" + bytes([len(parts)]) + b"".join(parts)

    both = ("JPEGImages", "SegmentationClass")
    assert first == hashlib.sha256(digest("a", *both) + digest("b", *both)).hexdigest()
    others = {first, dataset.fingerprint(("b", "a"), labels=True), dataset.fingerprint(("a", "b"), labels=False)}
    label = dataset.label("b")
    label[2, 2] = 255 if label[2, 2] != 255 else 0
    images.write_label(voc / "SegmentationClass" / "b.png", label)
    assert dataset.fingerprint(("a", "b"), labels=False) in others
    others.add(dataset.fingerprint(("a", "b"), labels=True))
    write_picture(voc / "JPEGImages" / "b.png", SIZES["b"], seed=9)
    others |= {dataset.fingerprint(("a", "b"), labels=labels) for labels in (False, True)}
    assert len(others) == 6


def test_mask_fingerprint_follows_the_masks(voc):
    write_grey(voc / "saliency_x" / "a.png", np.zeros(SIZES["a"]))
    dataset = FolderDataset(voc)
    seen = {dataset.mask_fingerprint(("a", "b"), "x")}
    write_grey(voc / "saliency_x" / "a.png", np.ones(SIZES["a"]))
    seen.add(dataset.mask_fingerprint(("a", "b"), "x"))
    write_grey(voc / "saliency_x" / "b.png", np.ones(SIZES["b"]))
    seen.add(dataset.mask_fingerprint(("a", "b"), "x"))
    assert len(seen) == 3


def test_check_finds_every_problem(voc):
    images.write_label(voc / "SegmentationClass" / "a.png", np.full(SIZES["a"], 255))
    images.write_label(voc / "SegmentationClass" / "b.png", np.full(SIZES["b"], 7))
    write_grey(voc / "saliency_x" / "b.png", np.zeros((2, 2)))
    (voc / "JPEGImages" / "c.png").write_bytes(b"broken")
    train, val = (list(FolderDataset(voc).check(split)) for split in ("train", "val"))
    assert len(train) == 3
    assert "saliency_x" in train[0]
    assert "holds the value 7" in train[1]
    assert "1 of 2 label maps of 'train' hold nothing but void" in train[2]
    assert val
    assert all("c.png" in problem for problem in val)
    assert list(FolderDataset(voc).check("val", limit=1)) == []


def test_open_dataset_takes_names_and_folders(voc, home, monkeypatch):
    assert datasets.open_dataset(str(voc)).name == "set"
    monkeypatch.chdir(voc.parent)
    assert datasets.open_dataset("set").names("train") == ("a", "b")
    with pytest.raises(DatasetError, match=r"\./absent does not exist|absent does not exist"):
        datasets.open_dataset("./absent")
    with pytest.raises(UnknownNameError, match=r"no data set called 'shape'.*Did you mean 'shapes'.*folder"):
        datasets.open_dataset("shape")
    with pytest.raises(UnknownNameError, match=r"'cityscapes'"):
        datasets.prepare("cityscapes")


def test_a_data_set_to_download_is_not_fetched_unasked(home):
    with pytest.raises(DatasetError, match=r"run `bench data prepare voc` to fetch it, or .*--root DIR"):
        datasets.open_dataset("voc")
    assert not home.exists()


def test_voc_opens_where_it_lies(voc, home, tmp_path):
    import shutil

    shutil.copytree(voc, home / "voc" / "VOCdevkit" / "VOC2012")
    dataset = datasets.open_dataset("voc")
    assert (dataset.name, len(dataset.classes), dataset.default_preset) == ("voc", 21, "paper")
    assert (dataset.train_split, dataset.eval_split, dataset.background) == ("trainaug", "val", 0)
    refused(r"no split 'trainaug', there are: train, val; run `bench data prepare voc`", dataset.names, "trainaug")
    (tmp_path / "elsewhere").mkdir()
    voc.rename(tmp_path / "elsewhere" / "VOC2012")
    assert datasets.open_dataset("voc", root=tmp_path / "elsewhere").root == tmp_path / "elsewhere" / "VOC2012"


def test_a_root_that_was_given_is_remembered(voc, home, tmp_path):
    voc.rename(tmp_path / "VOC2012")
    images.write_label(tmp_path / "VOC2012" / "SegmentationClassAug" / "a.png", np.zeros(SIZES["a"], int))
    write_text(tmp_path / "VOC2012" / "ImageSets" / "Segmentation" / "trainaug.txt", "a\nb\n")
    assert datasets.prepare("voc", tmp_path) == tmp_path / "VOC2012"
    assert datasets.open_dataset("voc").root.resolve() == (tmp_path / "VOC2012").resolve()


def test_the_default_is_kept(voc, home, monkeypatch):
    assert datasets.default_dataset() == "shapes"
    datasets.use("voc")
    assert datasets.default_dataset() == "voc"
    monkeypatch.chdir(voc.parent)
    datasets.use("set")
    assert datasets.default_dataset() == str(voc.resolve())
    with pytest.raises(UnknownNameError, match="imagenet"):
        datasets.use("imagenet")
    assert json.loads((home / "default.json").read_text())["default"] == str(voc.resolve())
    (home / "default.json").write_text("{")
    with pytest.raises(StorageError, match=r"default\.json cannot be read.*delete it"):
        datasets.default_dataset()


@pytest.mark.skipif(not SHARED.exists(), reason="the sample data sets are not here")
@pytest.mark.parametrize(
    ("name", "pictures", "classes", "background", "mask_sets"),
    [
        ("camvid-mini", (60, 30), 11, None, ()),
        ("horses-mini", (70, 30), 2, 0, ("true",)),
        ("salient-photos", (18,), 0, None, ("u2net",)),
    ],
)
def test_sample_data_sets(name, pictures, classes, background, mask_sets):
    dataset = FolderDataset(SHARED / name)
    assert tuple(len(dataset.names(split)) for split in dataset.splits()) == pictures
    assert (len(dataset.classes), dataset.background, dataset.mask_sets()) == (classes, background, mask_sets)
    assert list(dataset.check(dataset.eval_split, limit=5)) == []
    if name == "horses-mini":  # their masks are their labels
        np.testing.assert_array_equal(dataset.mask("horse071", "true"), dataset.label("horse071") == 1)
