"""Pictures with masks, as batches of two views each: what MaskContrast is trained on.

Every pair is a function of (seed, epoch, picture, redraw) and every batch one of (seed, step), so that neither the
number of workers nor a resume changes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.augment import Augmentation, draw_view, view_mask, view_picture
from bench.batches import Batches, Key, fetch, generator
from bench.datasets import FolderDataset
from bench.errors import DatasetError

from ._course import facts_of
from .maskcontrast import MaskSettings

__all__ = ["PairSet", "Pairs", "Pictures", "loader"]

log = logging.getLogger(__name__)

_SHUFFLE, _VIEWS = 2, 3
"""What a generator is for: the first number of its key; 1 is the order of `bench.batches`."""

_OWN_DRAWS = 3
_MOST_DRAWS = 500
_THREADS = 8
_NAMES_KEPT = 20


class Pairs(NamedTuple):
    """A batch: uint8 (B, 3, S, S) views with their masks, bool (B, S, S)."""

    query: torch.Tensor
    query_mask: torch.Tensor
    key: torch.Tensor
    key_mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures to train on: names that have a mask, and per name whose mask is used.

    facts: what a record says of the data, plain.
    """

    dataset: FolderDataset
    mask_set: str
    names: tuple[str, ...]
    mask_names: tuple[str, ...]
    facts: dict[str, Any]

    @classmethod
    def find(cls, dataset: FolderDataset, split: str, masks: MaskSettings, seed: int) -> Pictures:
        """Look at every mask of a split, and say what is found.

        Raises DatasetError when no picture has a mask, when none of the masks can be used, and for missing masks and
        masks of another size where the settings say so.
        """
        mask_set = _mask_set(dataset, masks.name)
        listed = dataset.names(split)
        empty = dataset.without_foreground(listed, mask_set)
        there = {name for name in listed if dataset.has_mask(name, mask_set)}
        filled = there.difference(empty)
        names = tuple(name for name in listed if name in filled)
        missing = tuple(name for name in listed if name not in there)
        _judge_missing(dataset, mask_set, missing, len(listed), masks.missing)
        _judge_empty(dataset, mask_set, empty, names)
        odd, unusable = _survey(dataset, names, mask_set, masks)
        orphans = dataset.masks_without_picture(mask_set)
        if orphans:
            log.info("%d masks of the set %s have no picture and are ignored", orphans, mask_set)
        facts = {
            **facts_of(dataset, split, names),
            "masks": mask_set,
            "mask_fingerprint": dataset.mask_fingerprint(names, mask_set),
            "without_foreground": len(empty),
            "without_mask": len(missing),
            "without_mask_first": list(missing[:_NAMES_KEPT]),
            "masks_without_picture": orphans,
            "masks_resized": odd,
            "masks_unusable": unusable,
        }
        mask_names = _other_names(names, seed) if masks.shuffle else names
        return cls(dataset, mask_set, names, mask_names, facts)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Picture, uint8 RGB (H, W, 3), and its mask, bool (H, W), resized by nearest neighbour where it differs."""
        picture = self.dataset.picture(self.names[index])
        mask = self.dataset.mask_as_stored(self.mask_names[index], self.mask_set)
        if mask.shape != picture.shape[:2]:
            image = Image.fromarray(mask.astype(np.uint8))
            mask = np.array(image.resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST)) > 0
        return picture, mask


def _mask_set(dataset: FolderDataset, wanted: str) -> str:
    """The set that is asked for; else `clean` where there is one, else the only one."""
    there = dataset.mask_sets()
    if wanted and dataset.has_mask_set(wanted):
        return wanted
    if wanted:
        raise DatasetError(
            f"{dataset.root} has no mask set {wanted!r}, there are: {', '.join(there) or 'none'}; put masks into "
            f"{dataset.root}/saliency_{wanted}/, choose another with --masks, or name a folder by its path: --masks "
            f"./{wanted}"
        )
    if "clean" in there or len(there) == 1:
        return "clean" if "clean" in there else there[0]
    if there:
        raise DatasetError(f"{dataset.root} has the mask sets {', '.join(there)}: choose one with --masks")
    raise DatasetError(
        f"{dataset.root} has no masks of salient objects to learn from: put one PNG per picture (0 and 255) into "
        f"{dataset.root}/saliency_NAME/"
    )


def _judge_empty(dataset: FolderDataset, mask_set: str, empty: Sequence[str], others: Sequence[str]) -> None:
    """Of the pictures that the set knows to have no foreground: there is no object in them to learn from."""
    if not empty:
        return
    what = f"{len(empty)} pictures have no foreground, as the record of the set {mask_set} of {dataset.root} says"
    if not others:
        raise DatasetError(f"{what}, and no other has a mask: nothing can be learnt; choose another set with --masks")
    log.info("%s, the first is %r: all background, left out", what, empty[0])


def _judge_missing(dataset: FolderDataset, mask_set: str, missing: Sequence[str], listed: int, rule: str) -> None:
    if not missing:
        return
    what = (
        f"{len(missing)} of {listed} pictures have no mask in the set {mask_set} of {dataset.root}, "
        f"the first is {missing[0]!r}"
    )
    if len(missing) == listed:
        raise DatasetError(f"{what}: add them (NAME.png), or choose another set with --masks")
    if rule == "error":
        raise DatasetError(f"{what}: add the masks, or leave these pictures out with --set masks.missing=skip")
    log.info("%s: left out", what)


def _survey(dataset: FolderDataset, names: Sequence[str], mask_set: str, masks: MaskSettings) -> tuple[int, int]:
    """The number of masks of another size than their picture, and of those no crop of which can pass the area rule."""

    def look(name: str) -> tuple[bool, bool]:
        mask = dataset.mask_as_stored(name, mask_set)
        return mask.shape != dataset.size(name), bool(mask.all() or not mask.any())

    with ThreadPoolExecutor(_THREADS) as pool:
        seen = list(pool.map(look, names))
    odd = [name for name, (other, _) in zip(names, seen, strict=True) if other]
    unusable = sum(void for _, void in seen)
    if unusable == len(names):
        raise DatasetError(
            f"all {len(names)} masks of the set {mask_set} in {dataset.root} are empty or fill their picture: nothing "
            "can be learnt from them; choose another set with --masks"
        )
    if odd and masks.size == "error":
        path = dataset.mask_path(odd[0], mask_set)
        raise DatasetError(
            f"{len(odd)} masks have another size than their picture, the first is {path}: correct them, or let them be "
            "resized with --set masks.size=resize"
        )
    if odd:
        log.warning(
            "%d masks have another size than their picture and are resized by nearest neighbour, the first is %s",
            len(odd),
            dataset.mask_path(odd[0], mask_set),
        )
    if unusable:
        log.info("%d masks are empty or fill their picture: other pictures are drawn in their place", unusable)
    return len(odd), unusable


def _other_names(names: Sequence[str], seed: int) -> tuple[str, ...]:
    """For every name another one of them, each taken once: a random cycle."""
    cycle = generator(_SHUFFLE, seed).permutation(len(names))
    other = np.empty_like(cycle)
    other[cycle] = np.roll(cycle, -1)
    return tuple(names[index] for index in other)


class PairSet:
    """Pairs by key."""

    def __init__(self, pictures: Pictures, augment: Augmentation, masks: MaskSettings, seed: int) -> None:
        self._pictures, self._augment, self._masks, self._seed = pictures, augment, masks, seed

    def __call__(self, key: Key) -> tuple[NDArray[Any], ...]:
        return self.pair(*key)

    def pair(self, epoch: int, index: int) -> tuple[NDArray[Any], ...]:
        """Query and its mask, key and its mask: uint8 (S, S, 3) and bool (S, S).

        Both views are drawn anew until the foreground of each passes the area rule; from the fourth draw on of another
        picture, chosen at random each time.
        """
        size, chosen = self._augment.size, -1
        for draw in range(_MOST_DRAWS):
            rng = generator(_VIEWS, self._seed, epoch, index, draw)
            wanted = index if draw < _OWN_DRAWS else int(rng.integers(len(self._pictures.names)))
            if wanted != chosen:
                (picture, mask), chosen = self._pictures.read(wanted), wanted
            views = [draw_view(self._augment, mask.shape, rng) for _ in range(2)]
            masks = [view_mask(view, mask, size) for view in views]
            if all(self._masks.least < inside.mean() < self._masks.most for inside in masks):
                made = [view_picture(view, picture, size) for view in views]
                return made[0], masks[0], made[1], masks[1]
        raise DatasetError(
            f"{_MOST_DRAWS} draws gave no pair of views with a foreground of {self._masks.least:g} to "
            f"{self._masks.most:g}: look at the masks of the set {self._pictures.mask_set}, or widen masks.least and "
            "masks.most"
        )


def loader(pairs: PairSet, batches: Batches, steps: range, *, workers: int, pin: bool) -> Iterator[Pairs]:
    """The batches of some steps, this process's share of each (see `bench.batches.fetch`)."""
    return fetch(pairs, batches, steps, collate=_collate, workers=workers, pin=pin)


def _collate(samples: Sequence[tuple[NDArray[Any], ...]]) -> Pairs:
    query, query_mask, key, key_mask = (torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True))
    return Pairs(query.permute(0, 3, 1, 2), query_mask, key.permute(0, 3, 1, 2), key_mask)
