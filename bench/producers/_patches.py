"""Patches of crops in fours, of which two pairs are neighbours and two are not.

Two pairs of neighbours (a, a') and (b, b') are drawn so that a and b' as well as b and a' lie far apart. They give
four pairs: two of neighbours, and two, (a, b') and (b, a'), of others. Both kinds are made of the very same patches, in
the same order: neither a place nor a content tells the kind, only how two patches go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.augment import View, draw_jitter, view_picture
from bench.batches import Key, generator
from bench.errors import DatasetError

from ._crops import PictureList, draw_box

__all__ = ["FourSet", "Fours", "collate", "contrasts", "cut", "draw_four", "pairs"]

Neighbours = Literal["corner", "all"]

_FOURS = 64
"""Drawn at a time from one crop; of those that fit, the first is taken."""

_OWN_CROPS, _MOST_CROPS = 3, 100

_AROUND = {
    "corner": ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    "all": tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x),
}


class Fours(NamedTuple):
    """A batch: uint8 crops (B, 3, S, S), and the upper left corners, int64 (B, 4, 2), of a, a', b, b' in each."""

    crops: torch.Tensor
    corners: torch.Tensor


class FourSet:
    """Crops with four patches, by key."""

    def __init__(self, pictures: PictureList, *, side: int, neighbours: Neighbours, contrast: float) -> None:
        self._pictures, self._side, self._neighbours, self._contrast = pictures, side, neighbours, contrast

    def __call__(self, key: Key) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The crop, uint8 (S, S, 3), and four corners, int64 (4, 2).

        Where a crop has no four patches of enough contrast another is drawn; from the fourth on of another picture.
        """
        epoch, index = key
        for draw in range(_MOST_CROPS):
            rng = generator(self._pictures.stream, self._pictures.seed, epoch, index, draw)
            chosen = index if draw < _OWN_CROPS else int(rng.integers(len(self._pictures)))
            crop = self._crop(chosen, rng)
            four = draw_four(contrasts(crop, self._side) >= self._contrast, self._side, self._neighbours, rng)
            if four is not None:
                return crop, four
        raise DatasetError(
            f"{_MOST_CROPS} crops of {self._pictures.dataset.root} held no four patches of {self._side} pixels with a "
            f"contrast of {self._contrast:g}: lower it (--set contrast=…), or take smaller patches (--set side=…)"
        )

    def _crop(self, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        crops = self._pictures.crops
        picture, side = self._pictures.read(index)
        view = View(
            draw_box(side, picture.shape, rng), jitter=draw_jitter(crops, rng), flip=bool(rng.random() < crops.flip)
        )
        return view_picture(view, picture, crops.size)


def collate(samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> Fours:
    crops, corners = (torch.from_numpy(np.stack(column)) for column in zip(*samples, strict=True))
    return Fours(crops.permute(0, 3, 1, 2), corners)


def contrasts(crop: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """The standard deviation of grey in the patch at each upper left corner, (S - side + 1, S - side + 1).

    crop: uint8 RGB (S, S, 3). Grey is the mean of the three channels, 0 to 255.
    """
    grey = crop.mean(axis=2, dtype=np.float64)
    mean, square = (_means(values, side) for values in (grey, grey * grey))
    return np.sqrt(np.maximum(square - mean * mean, 0))


def _means(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The mean over each square of `side`, by sums over all upper left rectangles."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.asarray(inside / side**2, np.float64)


def draw_four(
    fits: NDArray[np.bool_], side: int, neighbours: Neighbours, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Corners, int64 (4, 2), of a, a', b, b' among those that fit, bool (h, w); None where none of many draws do.

    a and a' are neighbours, as are b and b': they lie `side` pixels apart along one axis or both. a and b' lie at least
    2 · `side` apart, as do b and a' (Euclidean, the distance of the released code). All draws that fit are equally
    likely, and so is each with a and b, or with both kinds of patches, exchanged.
    """
    around, places = np.array(_AROUND[neighbours]) * side, np.argwhere(fits)
    if not len(places):
        return None
    firsts = places[rng.integers(len(places), size=(_FOURS, 2))]
    seconds = firsts + around[rng.integers(len(around), size=(_FOURS, 2))]
    fours = np.concatenate([firsts, seconds], axis=1)[:, [0, 2, 1, 3]]
    inside = ((fours >= 0) & (fours < fits.shape)).all(axis=(1, 2))
    fours = fours[inside]
    good = fits[fours[..., 0], fours[..., 1]].all(axis=1)
    for one, other in ((0, 3), (2, 1)):
        good &= ((fours[:, one] - fours[:, other]) ** 2).sum(axis=1) >= (2 * side) ** 2
    found = fours[good]
    return found[0] if len(found) else None


def cut(maps: torch.Tensor, corners: torch.Tensor, side: int) -> torch.Tensor:
    """The patches (B, 4, D, side, side) of maps (B, D, H, W) at their corners (B, 4, 2)."""
    reach = torch.arange(side, device=maps.device)
    rows, columns = (corners[..., axis, None] + reach for axis in (0, 1))  # (B, 4, side)
    pictures = torch.arange(len(maps), device=maps.device)[:, None, None, None]
    return maps.permute(0, 2, 3, 1)[pictures, rows[..., None], columns[:, :, None]].permute(0, 1, 4, 2, 3)


def pairs(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and second patches, each (4 · B, …), of all pairs of fours (B, 4, …), and whether they are neighbours."""
    first, second = (patches[:, places].flatten(0, 1) for places in ([0, 2, 0, 2], [1, 3, 3, 1]))
    kinds = torch.tensor([True, True, False, False], device=patches.device)
    return first, second, kinds.repeat(len(patches))
