"""What a classifier is trained on: samples in groups of one size, of warped pictures or of maps that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.batches import generator
from bench.contracts import Examples, Key, Maps
from bench.images import cell_index, pad_picture
from bench.warp import Warp, draw, warp_label, warp_picture

__all__ = ["FromMaps", "FromPictures", "Group", "together"]

_WARP = 4
"""What a generator is for: the first number of its key."""

_LABELS_KEPT = 512 << 20
"""Bytes of label maps kept in memory, so that later epochs need not decode them."""


@dataclass(slots=True)
class Group:
    """Samples of one size: their maps, or the pictures that maps are made of.

    pictures: uint8 (n, 3, H, W), padded, None where the maps are there. maps: of each tap (n, h, w, D). labels: uint8
    (n, H', W'). whole: labels at the size of the pictures, for a network that reads them. extent: (H, W) of the
    network's input before padding. index: of each sample in the train split.
    """

    labels: torch.Tensor
    extent: tuple[int, int]
    index: tuple[int, ...]
    pictures: torch.Tensor | None = None
    whole: torch.Tensor | None = None
    maps: tuple[torch.Tensor, ...] = ()


class _Labels:
    """Label maps of training samples; those that fit are kept in memory."""

    def __init__(self, examples: Examples) -> None:
        self._examples, self._held, self._bytes = examples, dict[int, NDArray[np.uint8]](), 0

    def read(self, index: int) -> NDArray[np.uint8]:
        found = self._held.get(index)
        if found is None:
            found = self._examples.label(index)
            if self._bytes + found.nbytes <= _LABELS_KEPT:
                self._held[index], self._bytes = found, self._bytes + found.nbytes
        return found


def _nearest(label: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A label map at another size: every pixel takes the label at its centre."""
    rows, columns = (cell_index(wanted, side, side, 1) for wanted, side in zip(size, label.shape, strict=True))
    return label if label.shape == size else label[rows[:, None], columns[None, :]]


class FromMaps:
    """Samples from maps that were computed once. grid, stretched: as in `FromPictures`."""

    def __init__(
        self, maps: Maps, taps: int, train: Examples, *, grid: int = 0, stretched: tuple[int, int] | None = None
    ) -> None:
        """maps: of the train split, with so many taps."""
        self._maps, self._held, self._labels = maps, maps.hold(), _Labels(train)
        self._taps, self._grid, self._stretched = range(taps), grid, stretched
        self._whole = any(maps.tap_of(which).frame == "label" for which in self._taps)

    def make(self, key: Key) -> Group:
        """The sample of a key, always the same for one picture."""
        _, index = key
        found = (torch.from_numpy(self._held.block(index, which)) for which in self._taps)
        maps = tuple(
            block.view(1, *self._maps.grid(index, which), -1) for which, block in zip(self._taps, found, strict=True)
        )
        label = self._labels.read(index)
        extent = self._stretched or (label.shape[0], label.shape[1])
        shown = _nearest(label, (self._grid, self._grid) if self._grid else extent)
        return Group(
            torch.from_numpy(shown)[None],
            extent,
            (index,),
            whole=torch.from_numpy(label)[None] if self._whole else None,
            maps=maps,
        )


class FromPictures:
    """Samples of warped pictures, for a network that computes maps of them in every step.

    grid: side of the label maps in cells; 0: that of the warped picture. pad_to: sides of the pictures are padded to
    multiples of it. whole: the network reads labels too.
    """

    def __init__(
        self, train: Examples, warp: Warp, seed: int, *, pad_to: int, grid: int = 0, whole: bool = False
    ) -> None:
        self._train, self._warp, self._seed = train, warp, seed
        self._pad_to, self._grid, self._whole = pad_to, grid, whole

    def make(self, key: Key) -> Group:
        """The sample of a key: the warp is a function of seed, epoch and picture."""
        epoch, index = key
        picture, label = self._train.read(index)
        change = draw(self._warp, (label.shape[0], label.shape[1]), generator(_WARP, self._seed, epoch, index))
        picture, label = warp_picture(self._warp, change, picture), warp_label(self._warp, change, label)
        padded = pad_picture(picture, self._pad_to).transpose(2, 0, 1)
        shown = _nearest(label, (self._grid, self._grid)) if self._grid else label
        return Group(
            torch.from_numpy(np.ascontiguousarray(shown))[None],
            (label.shape[0], label.shape[1]),
            (index,),
            pictures=torch.from_numpy(np.ascontiguousarray(padded))[None],
            whole=torch.from_numpy(np.ascontiguousarray(label))[None] if self._whole else None,
        )


def together(samples: Iterable[Group]) -> list[Group]:
    """Samples of equal sizes as one group, groups in order of their first sample."""
    alike: dict[Any, list[Group]] = {}
    for sample in samples:
        shapes = tuple(maps.shape for maps in sample.maps)
        padded = None if sample.pictures is None else sample.pictures.shape
        alike.setdefault((sample.extent, sample.labels.shape, padded, shapes), []).append(sample)
    return [_one(found) for found in alike.values()]


def _one(samples: Sequence[Group]) -> Group:
    first = samples[0]
    return Group(
        torch.cat([sample.labels for sample in samples]),
        first.extent,
        tuple(index for sample in samples for index in sample.index),
        pictures=None if first.pictures is None else torch.cat([s.pictures for s in samples if s.pictures is not None]),
        whole=None if first.whole is None else torch.cat([s.whole for s in samples if s.whole is not None]),
        maps=tuple(torch.cat(parts) for parts in zip(*(sample.maps for sample in samples), strict=True)),
    )
