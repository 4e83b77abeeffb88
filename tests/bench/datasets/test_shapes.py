"""The generated data set: what is drawn, that colour does not tell the class, and that it is whole or absent."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench.datasets import open_dataset, shapes
from bench.datasets.folder import FolderDataset
from bench.errors import StorageError


@pytest.fixture(scope="module")
def val():
    return [shapes.generate(index, "val") for index in range(shapes.COUNTS["val"])]


@pytest.fixture
def few(monkeypatch):
    """A data set of nine pictures, so that tests stay quick."""
    monkeypatch.setattr(shapes, "COUNTS", {"train": 6, "val": 3})


def quiet(line):
    pass


def test_a_picture_is_a_function_of_its_arguments():
    first = shapes.generate(3, "train")
    again = shapes.generate(3, "train")
    for name in ("picture", "label", "clean", "noisy"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    others = [shapes.generate(4, "train"), shapes.generate(3, "val"), shapes.generate(3, "train", seed=1)]
    assert not any(np.array_equal(first.picture, other.picture) for other in others)
    assert first.picture.shape == (112, 112, 3)
    assert first.picture.dtype == np.uint8
    assert shapes.generate(0, "val", size=64).label.shape == (64, 64)


def test_pixels_are_those_of_this_version():
    """Fails when a pixel changes: then raise `VERSION`, or rows of old and new pictures meet in one table."""
    digest = hashlib.sha256()
    for split in ("train", "val"):
        sample = shapes.generate(0, split)
        digest.update(sample.picture.tobytes() + sample.label.tobytes() + sample.noisy.tobytes())
    assert (shapes.VERSION, digest.hexdigest()[:16]) == (1, "26ea4e5fb73fee75")


def test_labels_masks_and_rings_fit_together(val):
    for sample in val[:60]:
        np.testing.assert_array_equal(sample.clean, (sample.label > 0) & (sample.label < 255))
        grown = ndimage.binary_dilation(sample.clean, np.ones((3, 3), bool))
        np.testing.assert_array_equal(sample.label == 255, grown & ~sample.clean)
        assert set(np.unique(sample.label)) <= {*range(11), 255}
        assert 0.02 < sample.clean.mean() < 0.5


def test_every_class_is_in_val_and_a_fifth_of_the_pictures_have_two_objects(val):
    per_picture = [set(np.unique(sample.label)) - {0, 255} for sample in val]
    assert set().union(*per_picture) == set(range(1, 11))
    counts = np.bincount(np.concatenate([list(classes) for classes in per_picture]), minlength=11)[1:]
    assert counts.min() >= 25  # 48 expected
    outlines = np.array([ndimage.label(sample.clean, np.ones((3, 3)))[1] for sample in val])
    assert 0.13 < np.mean(outlines == 2) < 0.27
    assert np.mean(outlines > 2) < 0.01  # the tip of a flower, cut off by the side of the picture


def test_colour_does_not_tell_the_class(val):
    """Nearest class mean of the objects' mean RGB, fitted on one half: chance is .10, SE .02."""
    colours, classes = [], []
    for sample in val:
        for number in set(np.unique(sample.label)) - {0, 255}:
            colours.append(sample.picture[sample.label == number].mean(axis=0))
            classes.append(number)
    x, y = np.array(colours), np.array(classes)
    half = len(y) // 2
    means = np.stack([x[:half][y[:half] == number].mean(axis=0) for number in range(1, 11)])
    nearest = ((x[half:, None] - means) ** 2).sum(axis=-1).argmin(axis=1) + 1
    assert (nearest == y[half:]).mean() < 0.19


def test_the_same_measure_finds_a_class_that_colour_does_tell(val):
    """The check above would notice: darkening every object by its class number is enough to be found out."""
    x = np.array([[sample.label[sample.clean].max() * 10.0] for sample in val])
    y = np.array([sample.label[sample.clean].max() for sample in val])
    means = np.stack([x[y == number].mean(axis=0) for number in range(1, 11)])
    assert ((((x[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1) + 1) == y).mean() > 0.9


@pytest.mark.parametrize("name", shapes.FORMS)
def test_textures_are_half_light_and_shapes_fill_their_radius(name):
    shape, texture = shapes.FORMS[name]
    v, u = (axis.astype(float) for axis in np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j])
    inside = shape(u, v)
    assert np.hypot(u, v)[inside].max() < 1.07
    assert 0.2 < inside.sum() * 0.01**2 / np.pi < 0.95
    draws = [(phase, period) for phase in (-0.1, 0, 0.1) for period in (0.34, 0.38, 0.42)]
    light = np.mean([texture(u + phase, v + phase, period)[inside].mean() for phase, period in draws])
    assert abs(light - 0.5) < 0.08


def test_noisy_masks_are_as_bad_as_promised(val):
    overlap = [(s.clean & s.noisy).sum() / (s.clean | s.noisy).sum() for s in val]
    assert abs(np.mean(overlap) - 0.74) < 0.02
    assert min(overlap) < 0.5
    assert max(overlap) > 0.9


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (300, 301)])
def test_stored_pngs_are_read_by_others(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(shapes._png(array))) as image:
        image.load()
        assert image.mode == ("RGB" if array.ndim == 3 else "L")
        np.testing.assert_array_equal(np.array(image), array)


def test_it_opens_by_name_prepared_on_the_spot(few, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBENCH_DATA", str(tmp_path))
    dataset = open_dataset("shapes")
    assert dataset.root == tmp_path / "shapes"
    assert dataset.classes == (
        "background",
        "disc",
        "square",
        "triangle",
        "flower",
        "cross",
        "annulus",
        "heart",
        "crescent",
        "hexagon",
        "ellipse",
    )
    assert (dataset.background, dataset.default_preset) == (0, "native")
    assert (dataset.train_split, dataset.eval_split) == ("train", "val")
    assert dataset.mask_sets() == ("clean", "noisy")
    for split in ("train", "val"):
        assert list(dataset.check(split)) == []
        for index, name in enumerate(dataset.names(split)):
            sample = shapes.generate(index, split)
            np.testing.assert_array_equal(dataset.picture(name), sample.picture)
            np.testing.assert_array_equal(dataset.label(name), sample.label)
            np.testing.assert_array_equal(dataset.mask(name, "clean"), sample.clean)
            np.testing.assert_array_equal(dataset.mask(name, "noisy"), sample.noisy)
    assert (FolderDataset(dataset.root).classes, FolderDataset(dataset.root).background) == (dataset.classes, 0)


def test_lists_hold_1000_and_400(tmp_path, monkeypatch):
    blank = np.zeros((4, 4), np.uint8)
    sample = shapes.Sample(np.zeros((4, 4, 3), np.uint8), blank, blank > 0, blank > 0)
    monkeypatch.setattr(shapes, "generate", lambda index, split: sample)
    dataset = FolderDataset(shapes.prepare(tmp_path / "shapes", quiet), card=shapes.CARD)
    assert {split: len(dataset.names(split)) for split in dataset.splits()} == {"train": 1000, "val": 400}


def test_what_is_whole_is_left_alone(few, tmp_path):
    said: list[str] = []
    root = shapes.prepare(tmp_path / "shapes", said.append)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert shapes.prepare(root, said.append) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("damage", ["picture", "marker", "version", "list", "mask"])
def test_what_is_half_made_is_made_again(few, tmp_path, damage):
    root = shapes.prepare(tmp_path / "shapes", quiet)
    whole = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if damage == "version":
        marker = root / ".shapes.json"
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": 0}))
    else:
        lost = {
            "picture": "JPEGImages/val_0001.png",
            "marker": ".shapes.json",
            "mask": "saliency_noisy/train_0003.png",
            "list": "ImageSets/Segmentation/val.txt",
        }
        (root / lost[damage]).unlink()
    shapes.prepare(root, quiet)
    assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} == whole
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_an_interrupted_drawing_leaves_nothing(few, tmp_path, monkeypatch):
    drawn: list[int] = []

    def stop(index, split):
        drawn.append(index)
        if len(drawn) > 3:
            raise KeyboardInterrupt
        return generate(index, split)

    generate = shapes.generate
    with monkeypatch.context() as patched:
        patched.setattr(shapes, "generate", stop)
        with pytest.raises(KeyboardInterrupt):
            shapes.prepare(tmp_path / "shapes", quiet)
    assert list(tmp_path.iterdir()) == []
    shapes.prepare(tmp_path / "shapes", quiet)


def test_other_files_are_never_touched(few, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"holds other files: give an empty or new folder"):
        shapes.prepare(tmp_path, quiet)
    (tmp_path / "mine" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "mine" / "JPEGImages" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(StorageError, match="holds other files"):
        shapes.prepare(tmp_path / "mine", quiet)
    assert (tmp_path / "mine" / "JPEGImages" / "holiday.png").read_bytes() == b"mine"
    (tmp_path / "empty").mkdir()
    assert shapes.prepare(tmp_path / "empty", quiet) == tmp_path / "empty"


def test_a_folder_that_cannot_be_written(few, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="DENSEBENCH_DATA"):
        shapes.prepare(tmp_path / "file" / "shapes", quiet)


def test_two_processes_at_once_both_get_it(few, tmp_path, monkeypatch):
    """The other one finishes while this one draws."""
    root = tmp_path / "shapes"
    write_all = shapes._write_all

    def slower(folder):
        write_all(folder)
        if not root.exists():
            write_all(root)

    monkeypatch.setattr(shapes, "_write_all", slower)
    assert shapes.prepare(root, quiet) == root
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert len(FolderDataset(root).names("train")) == 6
