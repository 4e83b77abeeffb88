"""Data sets on disk: the VOC layout, the folder that MaskContrast's authors publish, and pictures alone."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import images
from bench.datasets.maskrecord import pictures_without
from bench.errors import DatasetError
from bench.records import IGNORE, DatasetCard

__all__ = ["BACKGROUND", "MASK_PREFIX", "PICTURE_SUFFIXES", "FolderDataset", "holds_dataset", "occurrence", "read_mask"]

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
"""What a file must end in, in either case, to be taken for a picture."""

BACKGROUND = "background"
"""The class name that marks the background class, at any index."""

_INNER = (".", "VOCSegmentation", "VOCdevkit/VOC2012", "VOC2012")
"""Where the data may lie below the folder that was given."""

MASK_PREFIX = "saliency_"
"""What the folder of a mask set is called, before the set's name."""

_MASK_SUFFIX = "_model"
_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_THREADS = 8
_SHOWN = 8
_MOST_CLASSES = 254
_VOID_IS_NO_CLASS = "255 is void: where it is meant as an object, write 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the parts of a data set lie. labels: folders, the first that holds a name wins. masks: by set."""

    root: Path
    pictures: Path
    lists: Path | None = None
    labels: tuple[Path, ...] = ()
    masks: Mapping[str, Path] = field(default_factory=dict)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A saliency mask file, bool (H, W), read as a viewer shows it: `bench.images.read_grey` and `mask_of` say how."""
    return images.mask_of(images.read_grey(path), path)


class _NothingThereError(DatasetError):
    """A folder without pictures, or none at all."""


def holds_dataset(folder: Path) -> bool:
    """True when there is something in `folder` that `FolderDataset` opens; looks at names only.

    Raises DatasetError for a folder that cannot be read.
    """
    try:
        _find_layout(folder)
    except _NothingThereError:
        return False
    return True


class FolderDataset:
    """A data set in a folder; satisfies `bench.contracts.Dataset`.

    Three layouts are known, in the folder itself or in VOCSegmentation/, VOCdevkit/VOC2012/ or VOC2012/ below it:

    - VOC: JPEGImages/ (pictures of any usual format), SegmentationClass/ and SegmentationClassAug/ (palette or grey
      PNGs, 255 = void; the former wins where both have a name), ImageSets/Segmentation/SPLIT.txt (one name a line),
      saliency_NAME/ (masks). Where ImageSets/ is absent or holds no lists, all pictures are the split `train`;
    - MaskContrast's: images/, sets/SPLIT.txt, SegmentationClass[Aug]/, saliency_NAME_model/ (masks);
    - pictures directly in the folder: one split `train`, no labels.

    Class names come from the card, else from classes.txt (one a line), else the labels are scanned and classes are
    named by number; there are 254 at most. Label maps and masks are of the picture as it is shown, so turned where its
    EXIF orientation turns it. Opening looks at names only; each file is checked when it is read, and all by `check`.
    """

    def __init__(self, root: Path, *, name: str = "", card: DatasetCard | None = None) -> None:
        """Open `root`; with a card, its names, classes, splits and preset hold.

        Raises DatasetError when the folder is absent or holds no pictures, and when a folder of it cannot be read.
        """
        self._layout = _find_layout(Path(root))
        self._card = card
        self._names: dict[str, tuple[str, ...]] = {}
        self._scales: dict[Path, dict[bool, Path]] = {}
        self._colours: dict[Path, dict[bytes, tuple[int, Path]]] = {}
        self.root = self._layout.root
        self.name = name or (card.name if card else self.root.resolve().name)
        self.default_preset = card.default_preset if card else "native"
        splits = self.splits()
        usual = next((split for split in ("val", "train") if split in splits), splits[0])
        self.train_split = card.train_split if card else "train"  # never the one that is scored
        self.eval_split = card.eval_split if card else usual

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; () for a data set without labels and class names.

        Raises DatasetError for more than 254: a label is a byte, 255 is void, and 254 a pixel of no class.
        """
        if self._card:
            return _countable(self._card.classes, f"the data set {self.name}")
        listed = self.root / "classes.txt"
        if os.path.lexists(listed):
            return _countable(_read_lines(listed, "class"), str(listed))
        found = self._scan_classes()
        names = tuple(str(index) for index in range(max(found, default=-1) + 1))
        if self.has_labels:
            log.info(
                "%s has no classes.txt: its labels hold %s, named by number; write classes.txt to name them, with %r "
                "for the background if there is one",
                self.root,
                _scanned(found),
                BACKGROUND,
            )
        return _countable(names, f"the label maps of {self.root}")

    def check_classes(self) -> None:
        """DatasetError for a data set of one class: every method scores 100 there."""
        if len(self.classes) == 1:
            raise DatasetError(
                f"{self.root} has the one class {self.classes[0]!r}, so every prediction is right; expected two or "
                f"more in {'its card' if self._card else 'classes.txt'} and the label maps ({_VOID_IS_NO_CLASS})"
            )

    @cached_property
    def background(self) -> int | None:
        """Index of the background class: the card's, else that of the class named "background", else None."""
        if self._card:
            return self._card.background
        if BACKGROUND in self.classes:
            return self.classes.index(BACKGROUND)
        alike = next((name for name in self.classes if name.strip("_").lower() == BACKGROUND), None)
        if alike:
            log.info(
                "%s: the class %r is like any other; call it %r if it is the background", self.name, alike, BACKGROUND
            )
        return None

    @property
    def has_labels(self) -> bool:
        """True when there is a folder of label maps."""
        return bool(self._layout.labels)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have a list, sorted; ("train",) where there are no lists."""
        if self._layout.lists is None:
            return ("train",)
        return tuple(sorted(path.stem for path in _lists_in(self._layout.lists)))

    def names(self, split: str) -> tuple[str, ...]:
        """Picture names of a split, in the order of its list; all pictures, sorted, where there are no lists.

        Raises DatasetError for a split without a list, an empty list, a name listed twice or without a picture.
        """
        if split not in self._names:
            self._names[split] = self._read_names(split)
        return self._names[split]

    def picture(self, name: str) -> NDArray[np.uint8]:
        """RGB picture as people see it (EXIF rotation applied), uint8 (H, W, 3)."""
        return images.read_picture(self.picture_path(name))

    def size(self, name: str) -> tuple[int, int]:
        """(H, W) of the picture as people see it, from the file's header."""
        return images.picture_size(self.picture_path(name))

    def pixels(self, names: Iterable[str]) -> int:
        """The number of pixels of these pictures, from their headers."""
        return sum(height * width for height, width in map(self.size, names))

    def label(self, name: str) -> NDArray[np.uint8]:
        """Label map, uint8 (H, W), values 0 … classes-1 and 255 = void; same size as the picture.

        Raises DatasetError naming the file when it is absent or damaged, has another size than the picture, holds a
        value that is no class, or shows a class in the colour that another map of its folder has for another class.
        """
        path = self.label_path(name)
        label, colours = images.read_painted_label(path)
        self._check_size(name, path, label.shape)
        numbers = _numbers(label)
        highest = max(numbers, default=-1)
        if highest >= len(self.classes):
            raise DatasetError(
                f"label map {path} holds the value {highest}, but {self.name} has {len(self.classes)} classes (0 to "
                f"{len(self.classes) - 1}, 255 = void): add the class to {self.root / 'classes.txt'} or correct the map"
            )
        if colours is not None:
            self._check_palette(
                path, {number: colours[number].tobytes() for number in numbers if number < len(colours)}
            )
        return label

    def mask_sets(self) -> tuple[str, ...]:
        """Names of the sets of saliency masks, sorted: X for each folder saliency_X/ or saliency_X_model/."""
        return tuple(sorted(self._layout.masks))

    def has_mask_set(self, mask_set: str) -> bool:
        """True for one of `mask_sets`, and for the path of a folder of masks, which holds a separator (`./mine`)."""
        return mask_set in self._layout.masks or _is_path(mask_set)

    def has_mask(self, name: str, mask_set: str) -> bool:
        """True when the set has a file for the picture, or its record says that the picture has no foreground."""
        return self._find_mask(name, mask_set) is not None or name in pictures_without(self._mask_folder(mask_set))

    def without_foreground(self, names: Sequence[str], mask_set: str) -> tuple[str, ...]:
        """Those of the pictures that have no file in a set since `bench masks` found too little foreground in them."""
        known = pictures_without(self._mask_folder(mask_set))
        return tuple(name for name in names if name in known and self._find_mask(name, mask_set) is None)

    def mask(self, name: str, mask_set: str) -> NDArray[np.bool_]:
        """Saliency mask of a picture, bool (H, W), see `mask_as_stored`.

        All False for a picture `without_foreground`. Raises DatasetError also when its size is not the picture's.
        """
        mask = self.mask_as_stored(name, mask_set)
        path = self._find_mask(name, mask_set)
        if path is not None:
            self._check_size(name, path, mask.shape)
        return mask

    def mask_as_stored(self, name: str, mask_set: str) -> NDArray[np.bool_]:
        """Saliency mask of a picture at its file's own size, bool (H, W), as `read_mask` reads it.

        All False, at the picture's size, for a picture `without_foreground`.
        Raises DatasetError when there is no such set or file, for a file that is no mask, and for a set of which one
        file holds 0 and 1 alone while another goes up to 255: the 1 may be a probability of 1/255 there.
        """
        if self.without_foreground((name,), mask_set):
            return np.zeros(self.size(name), np.bool_)
        path = self.mask_path(name, mask_set)
        grey = images.read_grey(path)
        mask = images.mask_of(grey, path)
        if mask.any():
            self._check_scale(path, bytes_=bool(grey.max() > 1))
        return mask

    def mask_path(self, name: str, mask_set: str) -> Path:
        """The file of a picture's mask. Raises DatasetError when there is no such set or file."""
        path = self._find_mask(name, mask_set)
        if path is None:
            raise DatasetError(
                f"mask set {mask_set!r} has no mask of {name!r}: expected {self._mask_folder(mask_set) / name}.png"
            )
        return path

    def masks_without_picture(self, mask_set: str) -> int:
        """The number of mask files that belong to no picture of the data set."""
        stems = {path.stem for path in _files_in(self._mask_folder(mask_set)) if path.suffix in _MASK_SUFFIXES}
        return len({stem for stem in stems if not stem.startswith(".")} - set(self._pictures))

    def picture_path(self, name: str) -> Path:
        """The file of a picture. Raises DatasetError when there is none, or more than one."""
        paths = self._pictures.get(name, ())
        if len(paths) == 1:
            return paths[0]
        if paths:
            raise DatasetError(f"{self._layout.pictures} holds {' and '.join(p.name for p in paths)}: keep one of them")
        raise DatasetError(
            f"{self._listed(name)}, but {self._layout.pictures} has no such picture (lists hold file names without the "
            "suffix): add it or take it off the list"
        )

    def label_path(self, name: str) -> Path:
        """The label map of a picture; SegmentationClass/ comes before SegmentationClassAug/.

        Raises DatasetError when there is none.
        """
        if not self.has_labels:
            raise DatasetError(
                f"{self.root} has no label maps: expected SegmentationClass/ with one PNG per picture; scoring needs "
                "them (training, masks and predictions do not)"
            )
        for folder in self._layout.labels:
            path = folder / f"{name}.png"
            if _exists(path):
                return path
        folders = " or ".join(f"{folder.name}/" for folder in self._layout.labels)
        raise DatasetError(
            f"{self._listed(name)}, but there is no label map {name}.png in {folders} of {self.root}: add it or take "
            "it off the list"
        )

    def fingerprint(self, names: Sequence[str], *, labels: bool) -> str:
        """SHA-256 over the content of the pictures' (and, if asked, labels') files and their names, hex."""
        return fingerprint_files(
            (name, (self.picture_path(name), self.label_path(name)) if labels else (self.picture_path(name),))
            for name in names
        )

    def mask_fingerprint(self, names: Sequence[str], mask_set: str) -> str:
        """SHA-256 over the content of the mask files of a set and the names of their pictures, hex."""
        found = ((name, self._find_mask(name, mask_set)) for name in names)
        return fingerprint_files((name, (path,) if path else ()) for name, path in found)

    def twins(self, names: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Pairs (name, other) of different names whose picture files are equal byte for byte; each name once."""
        sizes = [self._picture_bytes(each) for each in (names, others)]
        shared = set(sizes[0].values()) & set(sizes[1].values())
        digests = [self._digests_of([name for name, size in each.items() if size in shared]) for each in sizes]
        of_content = {digest: other for other, digest in reversed(digests[1].items())}
        found = ((name, of_content.get(digest, name)) for name, digest in digests[0].items())
        return tuple((name, other) for name, other in found if other != name)

    def _picture_bytes(self, names: Sequence[str]) -> dict[str, int]:
        """The size of each picture's file; a file that is gone has none, and is found where it is read."""
        paths = {name: self.picture_path(name) for name in names}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}

    def _digests_of(self, names: Sequence[str]) -> dict[str, bytes]:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda name: _digests((self.picture_path(name),))[0], names)
            return dict(zip(names, found, strict=True))

    def check(self, split: str, limit: int | None = None, *, occurring: set[int] | None = None) -> Iterator[str]:
        """Open every picture, label map and mask of a split for real (the first `limit`); one line per problem.

        Last lines: how many label maps hold nothing but void, and where all of them hold one class alone.
        occurring: is given the numbers of the classes that have a pixel.
        """
        try:
            names = self.names(split)[:limit]
        except DatasetError as error:
            yield str(error)
            return
        void = []
        seen: set[int] = set() if occurring is None else occurring
        for name in names:
            yield from self._picture_problems(name)
            if self.has_labels:
                try:
                    numbers = _numbers(self.label(name))
                except DatasetError as error:
                    yield str(error)
                    continue
                seen |= numbers
                if not numbers:
                    void.append(name)
        if void:
            yield (
                f"{len(void)} of {len(names)} label maps of {split!r} hold nothing but void (255), the first is "
                f"{void[0]!r}: these pictures are not scored; take them off the list"
            )
        if len(seen) == 1 < len(names) and len(self.classes) > 1:
            yield f"{split}: {occurrence(self.classes, seen)}; correct the label maps"

    def _picture_problems(self, name: str) -> Iterator[str]:
        try:
            self.picture(name)
        except DatasetError as error:
            yield str(error)
            return
        for mask_set in self.mask_sets():
            if self.has_mask(name, mask_set):
                try:
                    self.mask(name, mask_set)
                except DatasetError as error:
                    yield str(error)

    @cached_property
    def _pictures(self) -> dict[str, tuple[Path, ...]]:
        return index_pictures(self._layout.pictures)

    def _read_names(self, split: str) -> tuple[str, ...]:
        if split not in self.splits():
            there = ", ".join(self.splits()) or "none"
            place = self._layout.lists / f"{split}.txt" if self._layout.lists else None
            fix = f"choose one of them, or write {place} with one picture name a line" if place else "choose that one"
            if self._card and split in (self.train_split, self.eval_split):
                fix = f"run `bench data prepare {self._card.name}` to complete it, or choose one of them"
            raise DatasetError(f"{self.root} has no split {split!r}, there are: {there}; {fix}")
        if self._layout.lists is None:
            names = tuple(sorted(self._pictures))
        else:
            names = _read_lines(self._layout.lists / f"{split}.txt", "picture")
        # known before the pictures are looked for, so that errors can say which list they stand on
        self._names[split] = names
        try:
            for name in names:
                self.picture_path(name)
        except DatasetError:
            del self._names[split]
            raise
        return names

    def _listed(self, name: str) -> str:
        """How to speak of a name: with the first list read so far that holds it."""
        for split, names in self._names.items():
            if name in names and self._layout.lists is not None:
                return f"{self._layout.lists / f'{split}.txt'} lists {name!r}"
        return f"{name!r} was asked for"

    def _check_size(self, name: str, path: Path, shape: tuple[int, ...]) -> None:
        size = self.size(name)
        if shape != size:
            raise DatasetError(
                f"{path} is {shape[1]}x{shape[0]} pixels (width x height), its picture {self.picture_path(name)} is "
                f"{size[1]}x{size[0]}: they must be of one size; resize the map by nearest neighbour"
            )

    def _mask_folder(self, mask_set: str) -> Path:
        if _is_path(mask_set):
            folder = Path(mask_set).expanduser()
            if not folder.is_dir():
                raise DatasetError(f"there is no folder of masks {folder}: name one that holds PICTURE.png files")
            return folder
        if mask_set not in self._layout.masks:
            there = ", ".join(self.mask_sets()) or "none"
            fix = (
                f"put masks into {self.root / (MASK_PREFIX + mask_set)}/, choose one of these, or name a folder by its "
                f"path (./{mask_set})"
            )
            if self._card and mask_set in self._card.masks:
                fix = f"run `bench data prepare {self._card.name} --masks {mask_set}` to fetch it"
            raise DatasetError(f"{self.root} has no mask set {mask_set!r}, there are: {there}; {fix}")
        return self._layout.masks[mask_set]

    def _find_mask(self, name: str, mask_set: str) -> Path | None:
        folder = self._mask_folder(mask_set)
        paths = (folder / f"{name}{suffix}" for suffix in _MASK_SUFFIXES)
        return next((path for path in paths if _exists(path)), None)

    def _scan_classes(self) -> list[int]:
        """The class numbers in any label map, ascending."""
        paths = [path for folder in self._layout.labels for path in _files_in(folder) if path.suffix == ".png"]
        with ThreadPoolExecutor(_THREADS) as pool:
            return sorted(set().union(*pool.map(lambda path: _numbers(images.read_label(path)), sorted(paths))))

    def _check_palette(self, path: Path, colours: Mapping[int, bytes]) -> None:
        """Refuse palettes that were sorted anew, map by map: their indices are no class numbers, though all look well.

        colours: those of the numbers that a map holds; what two numbers of it share tells nothing.
        """
        of_folder = self._colours.setdefault(path.parent, {})
        shared = Counter(colours.values())
        for number, colour in colours.items():
            if shared[colour] > 1:
                continue
            known, first = of_folder.setdefault(colour, (number, path))
            if known != number:
                raise DatasetError(
                    f"the colour #{colour.hex()} is number {number} in the palette of {path} and {known} in that of "
                    f"{first.name}: one of them was sorted anew when it was saved; expected one palette, whose indices "
                    "are the classes: write the maps again from their source"
                )

    def _check_scale(self, path: Path, *, bytes_: bool) -> None:
        """Note on which of the two scales a mask with foreground lies, and refuse a set that mixes them."""
        folder = self._scales.setdefault(path.parent, {})
        folder.setdefault(bytes_, path)
        if len(folder) == 2:
            raise DatasetError(
                f"{folder[False]} holds 0 and 1 alone and {folder[True].name} in the same folder goes up to 255, so 1 "
                "may mean foreground or next to nothing; expected one scale: write 0 and 255 in all masks of the set"
            )


def _is_path(mask_set: str) -> bool:
    return "/" in mask_set or os.sep in mask_set


def _find_layout(folder: Path) -> _Layout:
    try:
        return _layout_of(folder)
    except PermissionError as error:  # of what lies in a folder that may not be entered
        raise DatasetError(f"{error.filename} cannot be looked for: change the permissions of {folder}") from error


def _layout_of(folder: Path) -> _Layout:
    if not folder.is_dir():
        seen = "is a file, not a folder" if folder.exists() else "does not exist"
        raise _NothingThereError(
            f"the data set folder {folder} {seen}: give the folder that holds JPEGImages/ or pictures"
        )
    for inner in _INNER:
        root = folder / inner
        if (root / "JPEGImages").is_dir():
            return _voc_layout(root, root / "JPEGImages", _voc_lists(root / "ImageSets"))
        if (root / "images").is_dir() and (root / "sets").is_dir():
            return _voc_layout(root, root / "images", root / "sets")
    if not _has_pictures(folder):
        raise _NothingThereError(
            f"{folder} holds no data set: expected JPEGImages/ with ImageSets/Segmentation/ (VOC layout), images/ with "
            f"sets/, or pictures ({', '.join(PICTURE_SUFFIXES)}) directly in it"
        )
    return _Layout(root=folder, pictures=folder, masks=_mask_folders(folder))


def _voc_lists(sets: Path) -> Path | None:
    """ImageSets/Segmentation/ where there is one; DatasetError where the lists lie in ImageSets/ itself."""
    if not os.path.lexists(sets):
        return None
    inside = _files_in(sets)
    lists = sets / "Segmentation"
    stray = sorted(path.name for path in inside if path.suffix == ".txt")
    if lists in inside or not stray:
        return lists if lists in inside else None
    raise DatasetError(f"{sets} holds {_listing(stray)}, but the lists of splits are expected in {lists}/: move them")


def _voc_layout(root: Path, pictures: Path, lists: Path | None) -> _Layout:
    if not _has_pictures(pictures):
        raise _NothingThereError(f"{pictures} holds no pictures ({', '.join(PICTURE_SUFFIXES)}): put them there")
    return _Layout(
        root=root,
        pictures=pictures,
        lists=lists if lists is not None and _lists_in(lists) else None,
        labels=tuple(f for f in (root / "SegmentationClass", root / "SegmentationClassAug") if f.is_dir()),
        masks=_mask_folders(root),
    )


def _lists_in(folder: Path) -> list[Path]:
    """The lists of splits in a folder, none where it is empty; DatasetError where it holds other things alone."""
    inside = _files_in(folder)
    lists = [path for path in inside if path.suffix == ".txt"]
    if inside and not lists:
        raise DatasetError(
            f"{folder} holds no list: expected SPLIT.txt with a picture name a line, found "
            f"{_listing(sorted(path.name for path in inside))}; rename them, or remove the folder to score all pictures"
        )
    return lists


def _files_in(folder: Path) -> list[Path]:
    """What lies in a folder, without hidden entries; DatasetError, which names it, where that cannot be seen."""
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(
            f"the folder {folder} cannot be read ({error.strerror}): expected a folder that may be listed; change its "
            "permissions, or restore it"
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise DatasetError(f"{path} cannot be looked for: change the permissions of {path.parent}") from error


def _mask_folders(root: Path) -> dict[str, Path]:
    folders = sorted(path for path in root.glob(f"{MASK_PREFIX}?*") if path.is_dir())
    return {path.name.removeprefix(MASK_PREFIX).removesuffix(_MASK_SUFFIX): path for path in folders}


def _picture_files(folder: Path) -> Iterator[str]:
    # macOS leaves "._name.jpg" beside the files it copies: hidden entries are no pictures
    for path in _files_in(folder):
        if path.name.lower().endswith(PICTURE_SUFFIXES) and path.is_file():
            yield path.name


def _has_pictures(folder: Path) -> bool:
    return next(_picture_files(folder), None) is not None


def index_pictures(folder: Path) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for name in sorted(_picture_files(folder)):
        path = folder / name
        found[path.stem] = (*found.get(path.stem, ()), path)
    return found


def _read_lines(path: Path, what: str) -> tuple[str, ...]:
    """The lines of a list without blank ones; none may occur twice."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the list {path} cannot be read ({error}): expected UTF-8 text, a {what} a line") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise DatasetError(f"the list {path} is empty: expected a {what} a line")
    twice = next((line for line, count in Counter(lines).items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"the list {path} holds the {what} {twice!r} more than once: remove the repeated lines")
    return lines


def _countable(classes: tuple[str, ...], origin: str) -> tuple[str, ...]:
    if len(classes) > _MOST_CLASSES:
        raise DatasetError(
            f"{origin}: {len(classes)} classes; expected at most {_MOST_CLASSES}, since a label is one byte and 255 is "
            "void: merge classes, or make those that are not scored void"
        )
    return classes


def occurrence(classes: Sequence[str], occurring: Collection[int]) -> str:
    """What to say of label maps in which only some of the classes occur, by their numbers; "" where all do."""
    absent = [f"{name} ({number})" for number, name in enumerate(classes) if number not in occurring]
    if not absent:
        return ""
    said = f"no pixel of {len(absent)} of {len(classes)} classes: {_listing(absent)}"
    return f"{said} ({_VOID_IS_NO_CLASS})" if len(occurring) == 1 else said


def _scanned(found: Sequence[int]) -> str:
    """What to say of the class numbers that were found, ascending."""
    most = max(found, default=-1)
    if len(found) == most + 1:
        return f"{len(found)} classes" + (f" (0 to {most})" if most > 0 else "")
    shown = _listing([str(number) for number in found])
    return (
        f"the numbers {shown}, so that {most + 1} classes (0 to {most}) are scored, of which {most + 1 - len(found)} "
        "occur nowhere"
    )


def _listing(words: Sequence[str]) -> str:
    """The first of some words."""
    shown = ", ".join(words[:_SHOWN])
    return f"{shown} and {len(words) - _SHOWN} more" if len(words) > _SHOWN else shown


def _numbers(label: NDArray[np.uint8]) -> set[int]:
    """The class numbers in a label map, without void."""
    return set(np.flatnonzero(np.bincount(label.reshape(-1), minlength=IGNORE + 1)[:IGNORE]).tolist())


def fingerprint_files(files: Iterable[tuple[str, tuple[Path, ...]]]) -> str:
    """SHA-256 over (name, SHA-256 of each file) in order, hex."""
    listed = list(files)
    total = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        for (name, _), digests in zip(listed, pool.map(lambda item: _digests(item[1]), listed), strict=True):
            total.update(name.encode() + b"\0" + bytes([len(digests)]) + b"".join(digests))
    return total.hexdigest()


def _digests(paths: tuple[Path, ...]) -> list[bytes]:
    try:
        return [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read ({error.strerror}): restore it") from error
