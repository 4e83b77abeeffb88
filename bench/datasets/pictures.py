"""Pictures without labels, given one by one: what `bench predict` paints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import images
from bench.datasets.folder import fingerprint_files, index_pictures
from bench.errors import DatasetError
from bench.records import IGNORE

__all__ = ["PictureFiles"]


class PictureFiles:
    """Picture files as a data set of one split, `pictures`, whose labels are void; satisfies `bench.contracts.Dataset`.

    classes, background: those that are painted, by id.
    """

    name = "pictures"
    default_preset = "native"
    train_split = "train"
    eval_split = "pictures"

    def __init__(self, given: Iterable[Path], *, classes: Sequence[str], background: int | None) -> None:
        """Take files and, of folders, the pictures directly in them.

        Raises DatasetError for what is not there, a folder without pictures, and two pictures of one name.
        """
        self.classes, self.background = tuple(classes), background
        self._paths: dict[str, Path] = {}
        for path in (found for each in given for found in _found(each)):
            there = self._paths.setdefault(path.stem, path)
            if there != path:
                raise DatasetError(f"{there} and {path} would be painted into one file: give one of them, or rename it")
        if not self._paths:
            raise DatasetError("no pictures were given: name picture files, or folders that hold some")
        self.root = next(iter(self._paths.values())).parent

    def splits(self) -> tuple[str, ...]:
        """The one split."""
        return (self.eval_split,)

    def names(self, split: str) -> tuple[str, ...]:
        """Names of the pictures, in the order in which they were given."""
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def picture(self, name: str) -> NDArray[np.uint8]:
        """RGB picture as people see it (EXIF rotation applied), uint8 (H, W, 3)."""
        return images.read_picture(self._paths[name])

    def size(self, name: str) -> tuple[int, int]:
        """(H, W) of the picture as people see it, from the file's header."""
        return images.picture_size(self._paths[name])

    def label(self, name: str) -> NDArray[np.uint8]:
        """Nothing but void, uint8 (H, W)."""
        return np.full(self.size(name), IGNORE, np.uint8)

    def fingerprint(self, names: Sequence[str], *, labels: bool) -> str:
        """SHA-256 over the content of the pictures' files and their names, hex."""
        return fingerprint_files((name, (self._paths[name],)) for name in names)

    def twins(self, names: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """None: there is one split."""
        return ()

    def mask_sets(self) -> tuple[str, ...]:
        """None: pictures given one by one have no masks."""
        return ()

    def has_mask_set(self, mask_set: str) -> bool:
        """Never."""
        return False

    def has_mask(self, name: str, mask_set: str) -> bool:
        """Never."""
        return False

    def without_foreground(self, names: Sequence[str], mask_set: str) -> tuple[str, ...]:
        """None."""
        return ()

    def mask(self, name: str, mask_set: str) -> NDArray[np.bool_]:
        """Raises DatasetError."""
        raise DatasetError(f"{self._paths[name]} was given without masks: {mask_set} needs a data set")

    def mask_fingerprint(self, names: Sequence[str], mask_set: str) -> str:
        """That of no files."""
        return fingerprint_files((name, ()) for name in names)


def _found(given: Path) -> list[Path]:
    path = given.expanduser()
    if path.is_dir():
        listed = [found for paths in index_pictures(path).values() for found in paths]
        if not listed:
            raise DatasetError(f"the folder {path} holds no pictures directly in it: name the pictures")
        return listed
    if not path.exists():
        raise DatasetError(f"the picture {path} does not exist")
    return [path]
