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


def test_open_dataset_finds_what_was_prepared(archives, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBENCH_DATA", str(tmp_path / "home"))
    voc.prepare(tmp_path / "home" / "voc", lambda line: None, expected=COUNTS)
    dataset = open_dataset("voc")
    assert dataset.names("val") == ("2007_3",)
    np.testing.assert_array_equal(dataset.label("2007_3"), read_label(dataset.label_path("2007_3")))
