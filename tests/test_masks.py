"""`bench masks`: from a folder of pictures to masks, resumed, refused, and learnt from."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import masks
from bench.datasets import FolderDataset, maskrecord
from bench.estimators import basnet, contrast, u2net
from bench.networks.u2net import U2Net

CONTRAST = ("masks", "--estimator", "contrast")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.glob("*.png")}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "masks.json").read_text())


def disc(seed: int, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a disc on a ground of another colour, and its mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = (rows - size[0] / 2) ** 2 + (columns - size[1] / 2 - seed) ** 2 < 12**2
    colours = ((200, 60, 50), (60, 90, 200), (220, 200, 40))
    picture = np.where(mask[..., None], colours[seed % 3], (110, 120, 115)) + rng.integers(-9, 10, (*size, 3))
    return picture.clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A bare folder: eight pictures of discs, their sizes differ."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(8):
        Image.fromarray(disc(seed, (48 + seed, 64 - seed))[0]).save(folder / f"disc{seed}.png")
    return folder


def test_masks_of_a_bare_folder(bench, pictures):
    status, out, err = bench(*CONTRAST, "--dataset", pictures)
    assert status == 0, err
    folder = pictures / "saliency_contrast"
    assert out.strip() == str(folder)
    assert f"bench train maskcontrast --dataset {pictures} --masks contrast" in err.splitlines()[-1]
    for seed in range(8):
        wanted = disc(seed, (48 + seed, 64 - seed))[1]
        found = Image.open(folder / f"disc{seed}.png")
        assert found.mode == "L"
        values = np.array(found)
        assert set(np.unique(values)) == {0, 255}
        assert np.count_nonzero((values > 0) & wanted) / np.count_nonzero((values > 0) | wanted) > 0.8
    record = record_of(folder)
    assert record["without"] == []
    assert record["settings"]["estimator"]["options"]["segments"] == 250
    assert record["settings"]["masks"] == {"threshold": 0.5, "smallest": 0.01, "cleaning": "released-code"}


def test_all_splits_or_one(bench, voc, tmp_path):
    status, _, err = bench(*CONTRAST, "--dataset", voc, "--split", "train", "--limit", 3)
    assert status == 0, err
    assert sorted(files_of(voc / "saliency_contrast")) == ["train0", "train1", "train2"]
    status, _, err = bench(*CONTRAST, "--dataset", voc)
    assert status == 0, err
    assert "3 done before" in err
    assert len(files_of(voc / "saliency_contrast")) == 10


def test_finished_masks_are_not_made_again(bench, pictures, monkeypatch):
    folder = pictures / "saliency_contrast"
    assert bench(*CONTRAST, "--dataset", pictures, "--limit", 5)[0] == 0
    first = files_of(folder)
    (folder / "disc2.png").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    status, _, err = bench(*CONTRAST, "--dataset", pictures)
    assert status == 0, err
    assert "4 done before" in err
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(files_of(folder)) == 8
    assert files_of(folder).items() >= first.items()

    def never(request):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(contrast, "build", never)
    assert bench(*CONTRAST, "--dataset", pictures)[0] == 0


@pytest.mark.parametrize("words", [("--workers", 0), ("--workers", 3, "--batch-size", 5), ("--batch-size", 1)])
def test_batches_and_threads_change_nothing(bench, pictures, tmp_path, words):
    assert bench(*CONTRAST, "--dataset", pictures)[0] == 0
    assert bench(*CONTRAST, "--dataset", pictures, "--output", tmp_path / "other", *words)[0] == 0
    assert files_of(tmp_path / "other") == files_of(pictures / "saliency_contrast")


def test_pictures_of_every_kind(bench, tmp_path):
    """Grey, 16-bit grey, palette and transparent pictures; a plain one has no mask, once and for all."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    picture, mask = disc(0)
    grey = np.where(mask, 220, 90)
    Image.fromarray(grey.astype(np.uint8)).save(folder / "grey.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(picture).quantize(16).save(folder / "palette.png")
    alpha = np.full((*mask.shape, 1), 255, np.uint8)
    Image.fromarray(np.concatenate((picture, alpha), 2)).save(folder / "four.png")
    Image.fromarray(np.full((40, 50, 3), 130, np.uint8)).save(folder / "plain.png")
    for before in (0, 5):
        status, _, err = bench(*CONTRAST, "--dataset", folder)
        assert status == 0, err
        assert f"{before} done before" in err
        assert "1 of 5 pictures have no mask: their foreground is below 0.01 of the picture" in err
    assert record_of(folder / "saliency_contrast")["without"] == ["plain"]
    assert sorted(files_of(folder / "saliency_contrast")) == ["deep", "four", "grey", "palette"]
    for path in (folder / "saliency_contrast").glob("*.png"):
        found = np.array(Image.open(path)) > 0
        assert np.count_nonzero(found & mask) / np.count_nonzero(found | mask) > 0.8, path


@pytest.mark.parametrize("unusual", ["grey", "transparent", "cmyk"], indirect=True)
@pytest.mark.parametrize("estimator", ["contrast", "u2net@random --set u2net.arch=u2netp"], ids=["contrast", "u2net"])
def test_masks_are_of_pictures_as_people_see_them(bench, unusual, small, estimator):
    for folder in unusual:
        status, _, err = bench(
            "masks", "--estimator", *estimator.split(), "--set", "smallest=0", "--limit", 3, "--dataset", folder
        )
        assert status == 0, err
    name = estimator.partition("@")[0]
    stored, plain = (files_of(folder / f"saliency_{name}") for folder in unusual)
    assert len(stored) == 3
    assert stored == plain


def test_settings_reach_the_masks(bench, pictures, tmp_path):
    changes = ("threshold=0.9", "masks.cleaning=components", "contrast.segments=60", "contrast.level=none")
    words = [word for change in changes for word in ("--set", change)]
    assert bench(*CONTRAST, "--dataset", pictures, "--output", tmp_path / "other", *words)[0] == 0
    settings = record_of(tmp_path / "other")["settings"]
    assert settings["masks"] == {"threshold": 0.9, "smallest": 0.01, "cleaning": "components"}
    assert (settings["estimator"]["options"]["segments"], settings["estimator"]["options"]["level"]) == (60, "none")
    assert settings["dataset"] == "pictures"
    status, _, err = bench(*CONTRAST, "--dataset", pictures, "--output", tmp_path / "none", "--set", "smallest=0.9")
    assert (status, files_of(tmp_path / "none")) == (0, {}), err
    assert "8 of 8 pictures have no mask" in err


@pytest.fixture
def small(monkeypatch):
    """U²-Net reads pictures of 64 pixels."""
    monkeypatch.setattr(u2net, "INPUT", 64)


def test_masks_of_a_network(bench, pictures, small, tmp_path):
    """A file in the official layout, put where released files are kept; batches change nothing."""
    torch.manual_seed(0)
    state = U2Net("u2netp").state_dict()
    weights = Path(os.environ["DENSEBENCH_DATA"]) / "weights"
    weights.mkdir(parents=True)
    torch.save(state, weights / "u2netp.pth")
    words = ("masks", "--estimator", "u2net@u2netp", "--dataset", pictures, "--device", "cpu", "--set", "smallest=0")
    status, out, err = bench(*words)
    assert (status, out.strip()) == (0, str(pictures / "saliency_u2net")), err
    assert len(files_of(pictures / "saliency_u2net")) == 8
    assert record_of(pictures / "saliency_u2net")["settings"]["checkpoint"]["name"] == "u2netp"
    assert bench(*words, "--batch-size", 1, "--output", tmp_path / "other")[0] == 0
    one, other = (files_of(folder) for folder in (pictures / "saliency_u2net", tmp_path / "other"))
    assert one.keys() == other.keys()
    for name in one:
        first, second = (
            np.array(Image.open(f / f"{name}.png")) for f in (pictures / "saliency_u2net", tmp_path / "other")
        )
        assert np.mean(first != second) <= 0.01  # floats of another batch size may round otherwise


def test_a_damaged_picture_ends_the_command_and_keeps_what_was_made(bench, pictures):
    path = pictures / "disc7.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((40, 50, 3), 130, np.uint8)).save(pictures / "aaa.png")
    status, out, err = bench(*CONTRAST, "--dataset", pictures, "--batch-size", 1, "--workers", 1)
    assert (status, out) == (2, "")
    assert "disc7.png cannot be read" in err.splitlines()[-1]
    folder = pictures / "saliency_contrast"
    assert record_of(folder)["without"] == ["aaa"]
    assert len(files_of(folder)) >= 5
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    path.write_bytes(whole)
    assert bench(*CONTRAST, "--dataset", pictures)[0] == 0
    assert len(files_of(folder)) == 8


# --- what is refused -------------------------------------------------------------------------------------------------


def the_line(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, ""), err
    assert "Traceback" not in err
    return err.splitlines()[-1]


WORDS = {
    "estimator": ("--estimator contrats", "no estimator called 'contrats'", "mean 'contrast'", "bench.estimators"),
    "checkpoint": ("--estimator basnet@publik", "no checkpoint 'publik'", "Did you mean 'public'", "unsupervised"),
    "no weights": ("--estimator basnet", "cannot reach drive.google.com: download https", "by hand and put it at"),
    "no weights anywhere": ("--estimator deepusps", "no released weights", "deepusps@FILE"),
    "no such file": ("--estimator basnet --checkpoint gone.pth", "no file gone.pth"),
    "two checkpoints": ("--estimator basnet@public --checkpoint random", "--checkpoint random is for nothing"),
    "setting": ("--estimator contrast --set treshold=0.4", "masks has no setting 'treshold'", "'threshold'"),
    "range": ("--estimator contrast --set threshold=40", "masks.threshold=40 does not fit: expected at most 1"),
    "option": ("--estimator contrast --set contrast.segmants=9", "no setting 'segmants'", "'segments'"),
    "choice": ("--estimator contrast --set cleaning=cv2", "masks.cleaning=cv2", "released-code, components"),
    "owner": ("--estimator contrast --set basnet.size=3", "'basnet' is no part of this command", "contrast, masks"),
    "setting of a checkpoint": ("--estimator u2net@random --set checkpoint.sed=3", "no setting 'sed'", "'seed'"),
    "seed of nothing": ("--estimator u2net@random --set checkpoint.key=model", "checkpoint.key is not read", "random"),
    "device": ("--estimator u2net@random --device tpu", "--device tpu", "cuda:N"),
    "split": ("--estimator contrast --split tset", "no split 'tset'"),
    "data set": ("--estimator contrast --dataset ./gone", "gone does not exist"),
    "nothing": ("--estimator contrast --limit 0", "'--limit'"),
}  # fmt: skip


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("case", WORDS)
def test_words(bench, pictures, case):
    words, *needles = WORDS[case]
    given = words.split() if "--dataset" in words else [*words.split(), "--dataset", pictures]
    line = the_line(bench("masks", *given))
    for needle in needles:
        assert needle in line
    assert not list(pictures.glob("saliency_*"))


def test_wrong_weights(bench, pictures, tmp_path, monkeypatch):
    """A file of another network is named; so are the file that was cut off and the one that is none."""
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, tmp_path / "resnet.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Quota exceeded</title>")
    monkeypatch.setattr(basnet, "INPUT", 32)
    for file, needle in (("resnet.pth", "does not hold the network"), ("page.pth", "page.pth")):
        line = the_line(bench("masks", "--estimator", f"basnet@{tmp_path / file}", "--dataset", pictures))
        assert needle in line
    assert not list(pictures.glob("saliency_*"))


def test_masks_made_otherwise_do_not_mix(bench, pictures, small, tmp_path):
    folder = tmp_path / "masks"
    words = ("--dataset", pictures, "--output", folder)
    assert bench(*CONTRAST, *words, "--limit", 2)[0] == 0
    before = files_of(folder)
    line = the_line(bench(*CONTRAST, *words, "--set", "contrast.segments=60"))
    assert "made otherwise (estimator.options.segments: 250 there, 60 here)" in line
    assert "--output" in line
    line = the_line(bench("masks", "--estimator", "u2net@random", "--device", "cpu", *words))
    assert "estimator.name: contrast there, u2net here" in line
    (tmp_path / "others").mkdir()
    (pictures / "disc0.png").rename(tmp_path / "others" / "disc0.png")
    line = the_line(bench(*CONTRAST, "--dataset", tmp_path / "others", "--output", folder))
    assert "dataset: pictures there, others here" in line
    assert files_of(folder) == before


def test_two_commands_of_different_settings_at_once(pictures, tmp_path):
    """Two processes that begin together: one makes all masks, the other is refused, and the record is the first's."""
    folder = tmp_path / "masks"
    begin = "import sys; from bench.cli import main; sys.argv[0] = 'bench'; main()"
    words = ["masks", "--estimator", "contrast", "--dataset", str(pictures), "--output", str(folder)]
    more = ["--set", "contrast.segments=60", "--set", "smallest=0.02"]
    processes = [
        subprocess.Popen([sys.executable, "-c", begin, *words, *given], stderr=subprocess.PIPE, text=True)
        for given in ([], more)
    ]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(status for _, status in ended) == [0, 2], ended
    (line,) = [err.splitlines()[-1] for err, status in ended if status == 2]
    assert "is writing to" in line or "made otherwise" in line
    first = ended[0][1] == 0
    assert record_of(folder)["settings"]["estimator"]["options"]["segments"] == (250 if first else 60)
    assert len(files_of(folder)) == 8


@pytest.mark.parametrize("settings", [(), ("--set", "threshold=0.6")], ids=["the same", "others"])
def test_a_command_that_comes_while_another_is_at_work_is_refused(bench, pictures, monkeypatch, settings):
    """Between the first's check of the folder and its first mask, and while it writes."""
    make, refused = contrast.build, []

    def build(request):
        monkeypatch.setattr(contrast, "build", make)
        estimator = make(request)
        saliency = estimator.saliency

        def interrupted(prepared):
            if not refused:
                refused.append(the_line(bench(*CONTRAST, "--dataset", pictures, *settings)))
            return saliency(prepared)

        monkeypatch.setattr(estimator, "saliency", interrupted)
        return estimator

    monkeypatch.setattr(contrast, "build", build)
    status, _, err = bench(*CONTRAST, "--dataset", pictures)
    assert status == 0, err
    assert "another `bench masks` is writing to" in refused[0]
    assert "name another folder with --output" in refused[0]
    assert record_of(pictures / "saliency_contrast")["settings"]["masks"]["threshold"] == 0.5
    assert len(files_of(pictures / "saliency_contrast")) == 8


def test_what_another_command_made_meanwhile_is_compared_again(bench, pictures, monkeypatch):
    """The second begins after the first has looked at the folder, and ends before the first writes."""
    make = contrast.build

    def build(request):
        monkeypatch.setattr(contrast, "build", make)
        assert bench(*CONTRAST, "--dataset", pictures, "--set", "threshold=0.6")[0] == 0
        return make(request)

    monkeypatch.setattr(contrast, "build", build)
    line = the_line(bench(*CONTRAST, "--dataset", pictures))
    assert "made otherwise (masks.threshold: 0.6 there, 0.5 here)" in line
    assert record_of(pictures / "saliency_contrast")["settings"]["masks"]["threshold"] == 0.6


def test_folders_that_cannot_be_locked(bench, pictures, monkeypatch):
    """The record is created once; who finds it made in the same moment gives way."""

    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert bench(*CONTRAST, "--dataset", pictures, "--limit", 3)[0] == 0
    record = pictures / "saliency_contrast" / "masks.json"
    kept = record.read_bytes()
    for path in (pictures / "saliency_contrast").iterdir():
        path.unlink()
    seen = maskrecord.read_record

    def late(path):
        found = seen(path)
        if found is None and path.parent.is_dir():
            path.write_bytes(kept)
        return found

    calls = iter([seen, late])
    monkeypatch.setattr(masks, "read_record", lambda path: next(calls)(path))
    assert "another `bench masks` is writing to" in the_line(bench(*CONTRAST, "--dataset", pictures))
    assert record.read_bytes() == kept


def test_a_folder_begun_without_success_binds_nobody(bench, pictures):
    """A record without masks: the next command may choose other settings."""
    folder = pictures / "saliency_contrast"
    assert bench(*CONTRAST, "--dataset", pictures, "--limit", 1)[0] == 0
    (folder / "disc0.png").unlink()
    assert bench(*CONTRAST, "--dataset", pictures, "--set", "threshold=0.6")[0] == 0
    assert record_of(folder)["settings"]["masks"]["threshold"] == 0.6


def test_folders_that_are_not_ours(bench, pictures):
    folder = pictures / "saliency_contrast"
    folder.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "disc0.png")
    assert "holds masks that `bench masks` did not make" in the_line(bench(*CONTRAST, "--dataset", pictures))
    (folder / "masks.json").write_text("{")
    assert "masks.json cannot be read" in the_line(bench(*CONTRAST, "--dataset", pictures))
    (folder / "masks.json").write_text("[]")
    assert "is not what `bench masks` writes" in the_line(bench(*CONTRAST, "--dataset", pictures))


def test_a_data_set_that_cannot_be_written_to(bench, pictures, tmp_path, monkeypatch):
    """Read-only data: the line names --output, which works."""
    make = Path.mkdir

    def mkdir(self, *more, **options):
        if self.is_relative_to(pictures):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        make(self, *more, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    line = the_line(bench(*CONTRAST, "--dataset", pictures))
    assert "saliency_contrast cannot be written" in line
    assert "name another folder with --output" in line
    status, _, err = bench(*CONTRAST, "--dataset", pictures, "--output", tmp_path / "masks")
    assert status == 0, err
    assert len(files_of(tmp_path / "masks")) == 8
    assert f"--masks {tmp_path / 'masks'}" in err
    words = ("--preset", "small", "--steps", 1, "--output", tmp_path / "run", "--workers", 0)
    status, _, err = bench("train", "maskcontrast", "--dataset", pictures, "--masks", tmp_path / "masks", *words)
    assert status == 0, err


def test_masks_in_any_folder_are_named_by_its_path(bench, pictures, tmp_path, monkeypatch, voc):
    monkeypatch.chdir(tmp_path)
    status, _, err = bench(*CONTRAST, "--dataset", pictures, "--output", "masks")
    assert (status, f"--masks .{os.sep}masks" in err) == (0, True), err
    dataset = FolderDataset(pictures)
    name = dataset.names("train")[0]
    assert dataset.mask_sets() == ()
    assert dataset.mask(name, "./masks").any()
    for wrong, line in (("masks", "name a folder by its path: --masks ./masks"), ("./gone", "no folder of masks gone")):
        told = the_line(bench("train", "maskcontrast", "--dataset", pictures, "--masks", wrong, "--preset", "small"))
        assert line in told
    (tmp_path / "true").mkdir()
    for label in (voc / "SegmentationClass").iterdir():
        mask = np.isin(np.array(Image.open(label)), (1, 2))
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(tmp_path / "true" / label.name)
    words = ("eval", "--method", "colour", "--protocol", "kmeans", "--dataset", voc, "--seeds", 1)
    status, out, err = bench(*words, "--set", "kmeans.foreground=masks:./true")
    assert status == 0, err
    assert "the masks ./true" in out


def test_an_output_that_is_a_file(bench, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    line = the_line(bench(*CONTRAST, "--dataset", pictures, "--output", tmp_path / "file"))
    assert "file, not a folder" in line
    assert "--output" in line


# --- what it is for --------------------------------------------------------------------------------------------------


def test_from_a_bare_folder_to_coloured_maps(bench, pictures, tmp_path):
    """No labels, no lists: masks, a network that learns from them, and its clusters painted."""
    assert bench(*CONTRAST, "--dataset", pictures)[0] == 0
    run, maps = tmp_path / "run", tmp_path / "maps"
    small = ("batch=4", "queue=8", "augment.size=32", "warmup=0")
    changes = [word for change in small for word in ("--set", change)]
    status, out, err = bench(
        "train", "maskcontrast", "--dataset", pictures, "--output", run, "--device", "cpu", "--steps", 4, *changes
    )
    assert (status, out.strip()) == (0, str(run)), err
    assert "8 pictures of the split train with masks contrast" in err
    status, out, err = bench(
        "predict", pictures, "--method", f"maskcontrast@{run}", "--clusters", 3, "--output", maps, "--device", "cpu"
    )
    assert (status, out.strip()) == (0, str(maps)), err
    legend = list(csv.DictReader((maps / "legend.csv").open()))
    assert [line["name"] for line in legend] == ["not foreground", "cluster 0", "cluster 1", "cluster 2"]
    for seed in range(8):
        painted = Image.open(maps / f"disc{seed}.png")
        assert painted.mode == "P"
        assert np.array(painted).shape == (48 + seed, 64 - seed)
        assert np.array(painted).max() <= 3


@pytest.fixture
def plain(bench, voc) -> Path:
    """A data set of which one picture of either split has no foreground, with the masks that were made of it.

    saliency_written/ holds the same masks, and an empty one of each of the two.
    """
    for name, red in (("val2", 90), ("train1", 60)):
        path = next((voc / "JPEGImages").glob(f"{name}.*"))
        size = Image.open(path).size
        path.unlink()
        Image.new("RGB", size, (red, 120, 130)).save(path.with_suffix(".png"))
    assert bench(*CONTRAST, "--dataset", voc)[0] == 0
    assert record_of(voc / "saliency_contrast")["without"] == ["train1", "val2"]
    shutil.copytree(voc / "saliency_contrast", voc / "saliency_written")
    (voc / "saliency_written" / "masks.json").unlink()
    for name in ("val2", "train1"):
        size = Image.open(voc / "JPEGImages" / f"{name}.png").size
        Image.new("L", size).save(voc / "saliency_written" / f"{name}.png")
    return voc


@pytest.mark.parametrize(
    "words",
    [
        ("--protocol", "kmeans", "--set", "kmeans.unit=object"),
        ("--protocol", "kmeans", "--set", "kmeans.unit=pixel"),
        ("--protocol", "overclustering", "--clusters", "4"),
        ("--protocol", "retrieval"),
    ],
    ids=["objects", "pixels", "more clusters", "retrieval"],
)
def test_pictures_without_a_mask_are_all_background(bench, plain, words):
    """The same figures as with an empty mask in a file; how many they are is said."""
    found = {}
    for name in ("contrast", "written"):
        masks = f"{words[1]}.foreground=masks:{name}"
        status, out, err = bench(
            "eval", "--method", "colour", "--dataset", plain, "--seeds", 1, *words, "--set", masks, "--json"
        )
        assert status == 0, err
        found[name] = [row["per_seed"] for row in json.loads(out)]
        many = "2 of 10" if "retrieval" in words else "1 of 6"  # which reads the train split too
        told = f"{many} pictures have no foreground, as the record of the set contrast says: they are all background"
        assert (told in err) == (name == "contrast")
    assert found["contrast"] == found["written"]


def test_training_leaves_pictures_without_foreground_out(bench, plain, tmp_path):
    """Also where a missing mask is an error: none is missing."""
    words = ("train", "maskcontrast", "--dataset", plain, "--masks", "contrast", "--output", tmp_path / "run")
    small = ("batch=2", "queue=4", "augment.size=32", "warmup=0", "masks.missing=error")
    changes = [word for change in small for word in ("--set", change)]
    status, _, err = bench(*words, *changes, "--device", "cpu", "--steps", 1, "--workers", 0)
    assert status == 0, err
    assert "1 pictures have no foreground, as the record of the set contrast" in err
    assert "3 pictures of the split train with masks contrast" in err
    for name in ("train0", "train2", "train3"):
        (plain / "saliency_contrast" / f"{name}.png").unlink()
    line = the_line(bench(*words[:-1], tmp_path / "other", "--set", "masks.missing=skip", "--steps", 1))
    assert "no other has a mask: nothing can be learnt" in line


def test_doctor_counts_pictures_without_foreground(bench, plain):
    out = bench("doctor", "--dataset", plain)[1]
    assert "tiny val: 1 of 6 pictures are all background in the masks contrast" in out
    assert "in the masks written" not in out


def test_masks_that_are_missing_are_refused_still(bench, plain):
    """Of a picture that the record does not name, and of all where the record is damaged."""
    words = ("eval", "--method", "colour", "--protocol", "kmeans", "--dataset", plain, "--seeds", 1)
    (plain / "saliency_contrast" / "val0.png").unlink()
    line = the_line(bench(*words, "--set", "kmeans.foreground=masks:contrast"))
    assert "1 of 6 pictures have no mask in the set contrast" in line
    (plain / "saliency_contrast" / "masks.json").write_text("{}")
    line = the_line(bench(*words, "--set", "kmeans.foreground=masks:contrast"))
    assert "masks.json is not what `bench masks` writes: restore it" in line
