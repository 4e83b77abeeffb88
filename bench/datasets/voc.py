"""PASCAL VOC 2012 with the augmented training masks of SBD: taken where it lies, or fetched and built.

The saliency masks that MaskContrast's authors trained on come out of their own archive of the data set.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import download
from bench.errors import DatasetError, DownloadError
from bench.files import write_atomic
from bench.images import write_label
from bench.progress import track
from bench.records import DatasetCard

__all__ = ["CARD", "OFFICIAL", "Counts", "prepare", "prepare_masks", "read_sbd"]

CARD = DatasetCard(
    name="voc",
    summary="PASCAL VOC 2012: 20 classes and background; train 1,464 / trainaug 10,582 (with SBD) / val 1,449",
    prepare="bench.datasets.voc:prepare",
    classes=(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    background=0,
    default_preset="paper",
    train_split="trainaug",
    eval_split="val",
    masks=("supervised", "unsupervised"),
    prepare_masks="bench.datasets.voc:prepare_masks",
    download=True,
    licence="Flickr terms of use; annotations free for research",
    source="Everingham et al., IJCV 2010; Hariharan et al., ICCV 2011 (SBD)",
)

VOC_URLS = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
)
VOC_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
SBD_URLS = (
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
)
SBD_MD5 = "82b4d87ceb2ed10f6038a1cba92111cb"
MASKS_URL = "https://drive.google.com/file/d/1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH/view"
"""VOC as MaskContrast's authors publish it, 1.9 GB, no digest; the address is in their data loader and README."""

_MASKS_FILE = "PASCAL_VOC.tgz"
_INNER = (".", "VOCdevkit/VOC2012", "VOC2012", "VOCSegmentation")
_VOC_MEMBERS = tuple(
    f"VOCdevkit/VOC2012/{folder}/*" for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
)
_SBD_MEMBERS = ("*/dataset/cls/*", "*/dataset/train.txt", "*/dataset/val.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many pictures the lists hold."""

    train: int
    val: int
    trainaug: int


OFFICIAL = Counts(train=1464, val=1449, trainaug=10582)

Say = Callable[[str], None]


def prepare(root: Path, say: Say, *, expected: Counts = OFFICIAL) -> Path:
    """Make PASCAL VOC 2012 complete below `root`; returns the folder with JPEGImages/ (images/ in MaskContrast's).

    What is there is taken as it is: a VOC2012 folder (`root` itself, VOCdevkit/VOC2012 or VOC2012 below it, or the
    VOCSegmentation folder of MaskContrast's authors), its SegmentationClassAug/, its trainaug list. What is missing
    is fetched: the VOC archive (2 GB), and SBD's (1.4 GB), whose .mat files become palette PNGs in
    SegmentationClassAug/ for the pictures that have no mask of VOC's own. An interrupted call is continued by the next.

    trainaug: (SBD train and val + VOC train) without VOC val, sorted.
    Raises DownloadError, StorageError, and DatasetError when lists made from the archives have other lengths than
    `expected` (of lists that were there already, a difference is only said).
    """
    folder = _existing(root)
    fetched = folder is None
    if folder is None:
        folder = _fetch_voc(root, say)
    else:
        say(f"taking PASCAL VOC from {folder}")
    lists = _lists(folder)
    _compare(lists, "train", expected.train, fetched, say)
    _compare(lists, "val", expected.val, fetched, say)
    if not (folder / "SegmentationClassAug").is_dir():
        _add_sbd(root, folder, expected, fetched, say)
    elif not (lists / "trainaug.txt").exists():
        names = {path.stem for path in (folder / "SegmentationClassAug").glob("*.png")}
        _write_trainaug(lists, _trainaug(names, lists))
    _compare(lists, "trainaug", expected.trainaug, fetched, say)
    return folder


def prepare_masks(root: Path, folder: Path, name: str, say: Say) -> Path:
    """Put a mask set of MaskContrast's authors ("supervised" or "unsupervised" saliency) beside the pictures.

    root: as of `prepare`; the archive is kept in downloads/ there. folder: that `prepare` returned. The masks come to
    `folder`/saliency_NAME_model/, as in the archive; a set that is there already is taken as it is. An interrupted call
    is continued by the next.

    Raises DownloadError (with the place for an archive that was downloaded by hand), StorageError, and DatasetError
    when the archive holds no such set, or masks of other pictures.
    """
    inner = f"saliency_{name}_model"
    target = folder / inner
    if target.is_dir():
        say(f"taking the masks in {target}")
        _count_masks(target, folder, target, say)
        return target
    archive = root / "downloads" / _MASKS_FILE
    say(f"taking {archive}" if archive.exists() else f"fetching the masks of MaskContrast's authors from {MASKS_URL}")
    download.fetch(MASKS_URL, archive, what="masks of MaskContrast")
    say(f"unpacking {inner}/ of {archive.name}")
    unpacked = download.extract(archive, folder / f".{inner}", members=(f"{inner}/*", f"*/{inner}/*"))
    try:
        found = next((path for path in unpacked.rglob(inner) if path.is_dir()), None)
        if found is None:
            raise DatasetError(f"{archive} holds no folder {inner}/, so it is another archive: {_again(archive)}")
        _count_masks(found, folder, archive, say)
        found.rename(target)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    say(f"done; {archive} holds both mask sets and may be deleted")
    return target


def _count_masks(masks: Path, folder: Path, origin: Path, say: Say) -> None:
    """Say how many pictures of `trainaug` have a mask; none is an error, and `origin` is what to delete."""
    pictures = _read_list(_lists(folder) / "trainaug.txt")
    count = len(pictures & {path.stem for path in masks.glob("*.png")})
    if not count:
        raise DatasetError(f"{masks.name}/ of {origin} holds no mask of a picture of trainaug: {_again(origin)}")
    say(f"{count:,} of the {len(pictures):,} pictures of trainaug have a mask in {masks.name}/")


def _again(path: Path) -> str:
    return f"delete {path} and prepare the masks again"


def read_sbd(path: Path) -> NDArray[np.uint8]:
    """The class numbers in a .mat file of SBD's cls/ folder (its GTcls.Segmentation): uint8 (H, W), 0 … 20.

    Raises DatasetError naming a file that is damaged or holds something else.
    """
    from scipy.io import loadmat

    try:
        label = loadmat(str(path), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if label.ndim == 2 and label.size and label.min() >= 0 and label.max() < len(CARD.classes):
            return np.asarray(label, dtype=np.uint8)
        reason = f"its values are not 0 to {len(CARD.classes) - 1} in rows and columns"
    except Exception as error:  # scipy's reader raises nearly anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
    raise DatasetError(f"{path} holds no SBD label map ({reason}): delete {path.parents[2]} and prepare voc again")


def _existing(root: Path) -> Path | None:
    for inner in _INNER:
        if (root / inner / "SegmentationClass").is_dir():
            return root / inner
    return None


def _lists(folder: Path) -> Path:
    return folder / "sets" if (folder / "sets").is_dir() else folder / "ImageSets" / "Segmentation"


def _fetch_voc(root: Path, say: Say) -> Path:
    """The VOC archive, unpacked beside its place and then given its name."""
    archive = _fetch(VOC_URLS, root, VOC_MD5, "PASCAL VOC 2012", say)
    say(f"unpacking {archive.name}")
    unpacked = download.extract(archive, root / ".voc", members=_VOC_MEMBERS)
    folder = root / "VOCdevkit" / "VOC2012"
    folder.parent.mkdir(exist_ok=True)
    (unpacked / "VOCdevkit" / "VOC2012").rename(folder)
    shutil.rmtree(unpacked)
    return folder


def _add_sbd(root: Path, folder: Path, expected: Counts, strict: bool, say: Say) -> None:
    """Write SegmentationClassAug/ and the trainaug list from SBD's archive."""
    archive = _fetch(SBD_URLS, root, SBD_MD5, "SBD (masks of the augmented training set)", say)
    say(f"unpacking {archive.name}")
    unpacked = download.extract(archive, root / ".sbd", members=_SBD_MEMBERS)
    sbd = next(unpacked.glob("*/dataset"), None)
    if sbd is None:
        raise DatasetError(f"{archive} holds no dataset/ folder: delete it and {unpacked}, and prepare voc again")
    lists = _lists(folder)
    names = _read_list(sbd / "train.txt") | _read_list(sbd / "val.txt")
    trainaug = _trainaug(names, lists)
    # the length is checked before the minutes of conversion
    _compare_count(lists / "trainaug.txt", len(trainaug), expected.trainaug, strict, say)
    _convert(sbd / "cls", sorted(names), folder, say)
    _write_trainaug(lists, trainaug)
    shutil.rmtree(unpacked)
    say(f"done; the archives in {archive.parent} are no longer needed and may be deleted")


def _convert(source: Path, names: list[str], folder: Path, say: Say) -> None:
    """SBD's masks of pictures without one of VOC's own, as palette PNGs; the folder gets its name when it is whole."""
    part = folder / "SegmentationClassAug.part"
    missing = [name for name in names if not (folder / "SegmentationClass" / f"{name}.png").exists()]
    todo = [name for name in missing if not (part / f"{name}.png").exists()]
    say(f"converting {len(todo)} masks of SBD")
    for name in track(todo, len(todo), "converting masks"):
        write_label(part / f"{name}.png", read_sbd(source / f"{name}.mat"))
    part.mkdir(exist_ok=True)
    part.rename(folder / "SegmentationClassAug")


def _fetch(urls: tuple[str, ...], root: Path, md5: str, what: str, say: Say) -> Path:
    """The archive from the first address that gives it; the error is that of the official one."""
    target = root / "downloads" / urls[0].rpartition("/")[2]
    failures = []
    for url in urls:
        say(f"fetching {what} from {url}" if not target.exists() else f"checking {target}")
        try:
            return download.fetch(url, target, md5=md5, what=what)
        except DownloadError as error:
            failures.append(error)
    raise failures[0]


def _read_list(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()}
    except OSError as error:
        raise DatasetError(f"the list {path} cannot be read ({error.strerror}): prepare voc in a new folder") from error


def _trainaug(names: set[str], lists: Path) -> list[str]:
    return sorted((names | _read_list(lists / "train.txt")) - _read_list(lists / "val.txt"))


def _write_trainaug(lists: Path, names: list[str]) -> None:
    write_atomic(lists / "trainaug.txt", "".join(f"{name}\n" for name in names).encode())


def _compare(lists: Path, split: str, expected: int, strict: bool, say: Say) -> None:
    path = lists / f"{split}.txt"
    _compare_count(path, len(_read_list(path)), expected, strict, say)


def _compare_count(path: Path, count: int, expected: int, strict: bool, say: Say) -> None:
    if count == expected:
        return
    difference = f"{path} holds {count} pictures, expected {expected}"
    if strict:
        raise DatasetError(f"{difference}: the archives are not the official ones; delete them and prepare voc again")
    say(f"{difference}; it is taken as it is")
