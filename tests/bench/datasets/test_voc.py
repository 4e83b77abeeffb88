"""PASCAL VOC from archives that look like the real ones, served by a local server."""

from __future__ import annotations

import functools
import hashlib
import io
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from bench import download
from bench.datasets import open_dataset, voc
from bench.datasets.folder import FolderDataset
from bench.errors import DatasetError, DownloadError
from bench.images import read_label, voc_palette, write_label

OWN = {"train": ["2007_1", "2007_2"], "val": ["2007_3"]}
SBD = {"train": ["2007_1", "2008_1", "2008_2"], "val": ["2007_3", "2008_3"]}
COUNTS = voc.Counts(train=2, val=1, trainaug=5)
SIZE = (9, 12)


def sbd_label(name):
    return np.random.default_rng(sum(name.encode())).integers(0, 21, SIZE, dtype=np.uint8)


def make_voc(root: Path):
    folder = root / "VOCdevkit" / "VOC2012"
    for inner in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation", "Annotations"):
        (folder / inner).mkdir(parents=True)
    for name in (*OWN["train"], *OWN["val"], "2008_1", "2008_2", "2008_3", "2008_9"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    for split, names in OWN.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            write_label(folder / "SegmentationClass" / f"{name}.png", np.full(SIZE, 255))
    return folder


def make_sbd(path: Path):
    def add(name, content):
        info = tarfile.TarInfo(f"benchmark_RELEASE/dataset/{name}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))

    with tarfile.open(path, "w:gz") as archive:
        for split, names in SBD.items():
            add(f"{split}.txt", "".join(f"{n}\n" for n in names).encode())
            for name in names:
                mat: Any = io.BytesIO()
                savemat(mat, {"GTcls": {"Segmentation": sbd_label(name), "Boundaries": np.zeros((20, 1), object)}})
                add(f"cls/{name}.mat", mat.getvalue())
                add(f"img/{name}.jpg", b"not needed")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder with the two archives, served where the module looks for them."""
    served = tmp_path / "served"
    make_voc(tmp_path / "made")
    served.mkdir()
    with tarfile.open(served / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(tmp_path / "made" / "VOCdevkit", "VOCdevkit")
    make_sbd(served / "benchmark.tgz")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setattr(
        voc, "VOC_URLS", (f"{base}/gone/VOCtrainval_11-May-2012.tar", f"{base}/VOCtrainval_11-May-2012.tar")
    )
    monkeypatch.setattr(voc, "SBD_URLS", (f"{base}/benchmark.tgz",))
    for key, file in (("VOC_MD5", "VOCtrainval_11-May-2012.tar"), ("SBD_MD5", "benchmark.tgz")):
        monkeypatch.setattr(voc, key, hashlib.md5((served / file).read_bytes()).hexdigest())
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def check_complete(folder: Path):
    dataset = FolderDataset(folder, card=voc.CARD)
    assert dataset.splits() == ("train", "trainaug", "val")
    assert dataset.names("trainaug") == ("2007_1", "2007_2", "2008_1", "2008_2", "2008_3")
    assert sorted(p.name for p in (folder / "SegmentationClassAug").iterdir()) == [
        "2008_1.png",
        "2008_2.png",
        "2008_3.png",
    ]
    np.testing.assert_array_equal(dataset.label("2008_2"), sbd_label("2008_2"))
    assert (dataset.label("2007_1") == 255).all()  # VOC's own, not SBD's
    with Image.open(folder / "SegmentationClassAug" / "2008_1.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:63] == voc_palette()[:21].ravel().tolist()


def test_everything_is_fetched_and_built(archives, tmp_path):
    said: list[str] = []
    folder = voc.prepare(tmp_path / "data", said.append, expected=COUNTS)
    assert folder == tmp_path / "data" / "VOCdevkit" / "VOC2012"
    check_complete(folder)
    assert not (folder / "Annotations").exists()
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["VOCdevkit", "downloads"]
    assert any("gone" in line for line in said)  # the first address failed, the mirror did not
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    shutil.rmtree(tmp_path / "data" / "downloads")
    assert voc.prepare(tmp_path / "data", said.append, expected=COUNTS) == folder
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_an_existing_folder_is_completed(archives, tmp_path, inner):
    place = tmp_path / "mine" / inner
    place.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / "VOCdevkit" / "VOC2012").rename(place)
    (archives / "VOCtrainval_11-May-2012.tar").unlink()
    folder = voc.prepare(tmp_path / "mine", lambda line: None, expected=COUNTS)
    assert folder.resolve() == place.resolve()
    check_complete(folder)


def test_existing_augmented_masks_are_taken_as_they_are(tmp_path):
    folder = make_voc(tmp_path)
    for name in ("2008_9", "2007_3"):
        write_label(folder / "SegmentationClassAug" / f"{name}.png", np.ones(SIZE, int))
    said: list[str] = []
    voc.prepare(tmp_path, said.append)  # no server: nothing may be fetched
    lists = folder / "ImageSets" / "Segmentation"
    assert (lists / "trainaug.txt").read_text() == "2007_1\n2007_2\n2008_9\n"
    assert any("trainaug.txt holds 3 pictures, expected 10582" in line for line in said)
    (lists / "trainaug.txt").write_text("2008_9\n")
    voc.prepare(tmp_path, said.append)
    assert (lists / "trainaug.txt").read_text() == "2008_9\n"


def test_conversion_is_taken_up(archives, tmp_path, monkeypatch):
    converted: list[str] = []

    def stop(path):
        if converted and len(converted) < 2:
            converted.append("stop")
            raise KeyboardInterrupt
        converted.append(path.stem)
        return sbd_label(path.stem)

    monkeypatch.setattr(voc, "read_sbd", stop)
    with pytest.raises(KeyboardInterrupt):
        voc.prepare(tmp_path / "data", lambda line: None, expected=COUNTS)
    assert not (tmp_path / "data" / "VOCdevkit" / "VOC2012" / "SegmentationClassAug").exists()
    check_complete(voc.prepare(tmp_path / "data", lambda line: None, expected=COUNTS))
    assert converted == ["2008_1", "stop", "2008_2", "2008_3"]


def test_archives_of_other_lengths_are_refused(archives, tmp_path):
    with pytest.raises(DatasetError, match=r"train\.txt holds 2 pictures, expected 1464"):
        voc.prepare(tmp_path / "a", lambda line: None)
    with pytest.raises(DatasetError, match=r"trainaug\.txt holds 5 pictures, expected 6"):
        voc.prepare(tmp_path / "b", lambda line: None, expected=voc.Counts(train=2, val=1, trainaug=6))
    assert not (tmp_path / "b" / "VOCdevkit" / "VOC2012" / "SegmentationClassAug.part").exists()


def test_a_wrong_archive_is_refused(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(voc, "SBD_MD5", "0" * 32)
    with pytest.raises(DownloadError, match="expected md5 0000"):
        voc.prepare(tmp_path / "data", lambda line: None, expected=COUNTS)


def test_damaged_sbd_files_are_named(tmp_path):
    path = tmp_path / "x" / "y" / "bad.mat"
    path.parent.mkdir(parents=True)
    for content in (b"", b"junk" * 100):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"bad\.mat holds no SBD label map"):
            voc.read_sbd(path)
    savemat(path, {"GTcls": {"Segmentation": np.full(SIZE, 21, np.uint8)}})
    with pytest.raises(DatasetError, match=r"not 0 to 20"):
        voc.read_sbd(path)


def test_the_official_figures():
    assert voc.Counts(train=1464, val=1449, trainaug=10582) == voc.OFFICIAL
    assert len(voc.CARD.classes) == len(set(voc.CARD.classes)) == 21
    assert (voc.CARD.background, voc.CARD.classes[0]) == (0, "background")
    assert (voc.CARD.classes[1], voc.CARD.classes[15], voc.CARD.classes[20]) == ("aeroplane", "person", "tvmonitor")


# --- the masks of MaskContrast's authors -----------------------------------------------------------------------------


def published_masks(path: Path, names: tuple[str, ...] = ("2007_1", "2008_1", "2008_9"), more: str = "") -> Path:
    """The archive of the authors, as far as the masks go: both sets, each beside pictures and lists."""
    picture = io.BytesIO()
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(picture, "PNG")
    content = {f"VOCSegmentation/saliency_{s}_model/{n}.png": picture.getvalue() for s in voc.CARD.masks for n in names}
    content[more or "VOCSegmentation/sets/trainaug.txt"] = b"2007_1\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def drive(archives, monkeypatch):
    """The archive as Google Drive gives it: the shared address leads to the local server."""
    base = voc.SBD_URLS[0].removesuffix("/benchmark.tgz")
    monkeypatch.setattr("bench.hosts._DRIVE_FILE", f"{base}/PASCAL_VOC.tgz?id={{}}")
    return published_masks(archives / "PASCAL_VOC.tgz")


def prepared(tmp_path: Path) -> Path:
    """VOC with its lists, complete without a download."""
    folder = make_voc(tmp_path / "data")
    write_label(folder / "SegmentationClassAug" / "2008_1.png", np.ones(SIZE, int))
    return folder


@pytest.mark.parametrize("name", ["supervised", "unsupervised"])
def test_masks_are_laid_into_the_data_set(drive, tmp_path, bench, name):
    folder = prepared(tmp_path)
    words = ("data", "prepare", "voc", "--root", tmp_path / "data", "--masks", name)
    status, out, err = bench(*words)
    assert (status, out.strip()) == (0, str(folder))
    assert "2 of the 3 pictures of trainaug have a mask" in err
    dataset = open_dataset("voc")
    assert dataset.mask_sets() == (name,)
    assert dataset.mask("2008_1", name).all()
    assert dataset.masks_without_picture(name) == 0
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    shutil.rmtree(tmp_path / "data" / "downloads")
    drive.unlink()
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    status, _, err = bench(*words)  # complete: nothing is fetched, nothing written
    assert status == 0
    assert "taking the masks in" in err
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_the_other_set_comes_out_of_the_same_archive(drive, tmp_path):
    folder = prepared(tmp_path)
    voc.prepare(tmp_path / "data", lambda line: None)
    voc.prepare_masks(tmp_path / "data", folder, "supervised", lambda line: None)
    drive.unlink()
    voc.prepare_masks(tmp_path / "data", folder, "unsupervised", lambda line: None)
    assert FolderDataset(folder, card=voc.CARD).mask_sets() == ("supervised", "unsupervised")


def test_an_archive_that_was_downloaded_by_hand_is_taken(tmp_path, monkeypatch, bench):
    prepared(tmp_path)
    published_masks(tmp_path / "data" / "downloads" / "PASCAL_VOC.tgz")
    monkeypatch.setattr("bench.hosts.direct", lambda *args: pytest.fail("the net was asked"))
    status, _, err = bench("data", "prepare", "voc", "--root", tmp_path / "data", "--masks", "supervised")
    assert status == 0
    assert f"taking {tmp_path / 'data' / 'downloads' / 'PASCAL_VOC.tgz'}" in err


def test_unpacking_is_taken_up(drive, tmp_path, monkeypatch):
    folder = prepared(tmp_path)
    voc.prepare(tmp_path / "data", lambda line: None)
    with monkeypatch.context() as patched:
        patched.setattr(voc, "_count_masks", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            voc.prepare_masks(tmp_path / "data", folder, "supervised", lambda line: None)
    assert not (folder / "saliency_supervised_model").exists()
    voc.prepare_masks(tmp_path / "data", folder, "supervised", lambda line: None)
    assert len(list((folder / "saliency_supervised_model").iterdir())) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>"), "too often"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is not a whole tar or zip archive"),
        (lambda path: published_masks(path, names=("2009_1",)), "holds no mask of a picture of trainaug: delete"),
        (lambda path: published_masks(path, names=()), "holds no folder saliency_supervised_model/"),
        (lambda path: published_masks(path, more="../up"), "unsafe member '../up'"),
    ],
)
def test_what_is_not_the_archive_of_masks(drive, tmp_path, bench, spoil, message):
    folder = prepared(tmp_path)
    spoil(drive)
    status, _, err = bench("data", "prepare", "voc", "--root", tmp_path / "data", "--masks", "supervised")
    assert status == 2
    assert message in err.splitlines()[-1]
    assert not (folder / "saliency_supervised_model").exists()
    assert not (folder / ".saliency_supervised_model").exists()


def test_offline_the_masks_are_described(tmp_path, monkeypatch, bench):
    prepared(tmp_path)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setattr("bench.hosts._DRIVE_FILE", "http://127.0.0.1:9/{}")
    status, _, err = bench("data", "prepare", "voc", "--root", tmp_path / "data", "--masks", "supervised")
    assert status == 2
    place = tmp_path / "data" / "downloads" / "PASCAL_VOC.tgz"
    assert err.splitlines()[-1] == (
        f"bench: cannot reach drive.google.com: download {voc.MASKS_URL} by hand and put it at {place}"
    )


def test_mask_sets_that_cannot_be_fetched(tmp_path, bench):
    for words, message in (
        (("voc", "--masks", "supervized"), "voc has no mask set 'supervized' to fetch. Did you mean 'supervised'"),
        (("shapes", "--masks", "clean"), "shapes has no masks to fetch"),
    ):
        status, _, err = bench("data", "prepare", *words)
        assert status == 2
        assert message in err
    dataset = FolderDataset(prepared(tmp_path), card=voc.CARD)
    with pytest.raises(DatasetError, match="run `bench data prepare voc --masks supervised` to fetch it"):
        dataset.mask("2007_1", "supervised")


def test_open_dataset_finds_what_was_prepared(archives, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBENCH_DATA", str(tmp_path / "home"))
    voc.prepare(tmp_path / "home" / "voc", lambda line: None, expected=COUNTS)
    dataset = open_dataset("voc")
    assert dataset.names("val") == ("2007_3",)
    np.testing.assert_array_equal(dataset.label("2007_3"), read_label(dataset.label_path("2007_3")))
