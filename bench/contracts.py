"""What an adapter, a data set and a protocol must offer. `bench.testing` checks these promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bench.records import Tap

if TYPE_CHECKING:
    import torch

    from bench.metrics import Counts
    from bench.objects import Objects
    from bench.settings import ObjectSettings

__all__ = ["Adapter", "Dataset", "Maps", "Outcome", "Painting", "Scope", "Variant", "Work"]


@runtime_checkable
class Adapter(Protocol):
    """A method, ready to give maps. It is also an `nn.Module`; the harness moves it, sets eval mode and autocast.

    taps: the maps it can give. default_tap: the one protocols read unless told otherwise.
    pad_to: the sides of the network's input must be multiples of this (pixels).
    needs_labels: True when `forward` must be given labels (only `oracle`).
    fingerprint: "" = the weights alone decide the maps; otherwise text that changes whenever the maps do.
    """

    taps: Mapping[str, Tap]
    default_tap: str
    pad_to: int
    needs_labels: bool
    fingerprint: str

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, H, W) -> the network's float input (B, C, H, W); pure, on the tensor's device."""
        ...

    def __call__(
        self, inputs: torch.Tensor, taps: Sequence[str], *, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Maps of the taps asked for in one pass, each float (B, D, h, w), differentiable.

        labels: uint8 (B, H', W') at the labels' own size with 255 = void, only where `needs_labels`.
        """
        ...


@runtime_checkable
class Dataset(Protocol):
    """An opened data set in VOC layout. Every error is a `DatasetError` that names the file."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> Path: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def background(self) -> int | None: ...
    @property
    def default_preset(self) -> str: ...
    @property
    def train_split(self) -> str: ...
    @property
    def eval_split(self) -> str: ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have a list."""
        ...

    def names(self, split: str) -> tuple[str, ...]:
        """Picture names of a split, in the order of its list."""
        ...

    def picture(self, name: str) -> NDArray[np.uint8]:
        """RGB picture as people see it (EXIF rotation applied), uint8 (H, W, 3)."""
        ...

    def size(self, name: str) -> tuple[int, int]:
        """(H, W) of the picture as people see it, from the file's header."""
        ...

    def label(self, name: str) -> NDArray[np.uint8]:
        """Label map, uint8 (H, W), values 0 … classes-1 and 255 = void; same size as the picture."""
        ...

    def fingerprint(self, names: Sequence[str], *, labels: bool) -> str:
        """SHA-256 over the content of the pictures' (and, if asked, labels') files and their names, hex."""
        ...

    def mask_sets(self) -> tuple[str, ...]:
        """Names of the sets of saliency masks."""
        ...

    def has_mask(self, name: str, mask_set: str) -> bool:
        """True when the set has a mask of the picture."""
        ...

    def mask(self, name: str, mask_set: str) -> NDArray[np.bool_]:
        """Saliency mask of a picture, bool (H, W) of the picture's size."""
        ...

    def mask_fingerprint(self, names: Sequence[str], mask_set: str) -> str:
        """SHA-256 over the content of the mask files of a set and the names of their pictures, hex."""
        ...


class Maps(Protocol):
    """The maps of one tap over one split: can be read again and again, in list order.

    grids: (h, w) of every picture. channels: D. vectors: the sum of h·w.
    """

    names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    channels: int
    vectors: int
    key: str

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """One array (h·w, D) per picture, row-major over the grid, in list order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is known about a job before its first forward pass.

    vectors: cells of all maps of the scored split; None while the method is not built yet.
    pictures: of the scored split. foreground: the method gives one of its own (None while it is not built yet).
    background: the data set has a background class.
    explicit: names of the settings that the user gave (the others came from the preset).
    """

    classes: int
    device: str
    vectors: int | None = None
    pictures: int = 0
    foreground: bool | None = None
    background: bool = True
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row to be made: its settings, final, and what the reader of the row has to know about them."""

    settings: Any
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a protocol returns for one seed.

    counts: per picture, the pixels of cluster k with label c; void in the last column.
    assignments: one (h, w) map of cluster ids per picture, or None.
    arrays: whatever is worth keeping beside the row for this seed (centroids, heads).
    shared: the same for what does not depend on the seed (PCA); kept once.
    notes: sentences for the reader of the table ("K was cut from 50 to 40: …").
    facts: numbers worth keeping per seed (inertia, iterations).
    matched: class of each cluster (-1 = none) where ids mean classes from the start: nothing is matched with the
        labels then, and the only rule is `as_predicted`. among: the classes that means are taken over; empty = all.
    """

    counts: Counts
    assignments: list[NDArray[np.integer[Any]]] | None = None
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    shared: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    matched: NDArray[np.integer[Any]] | None = None
    among: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Painting:
    """Which id every pixel of some pictures has, in one of three forms.

    cells: one (h, w) map of ids per picture. objects: (N,) the id of each picture's object. pixels: one (H, W) map of
    ids per picture at its own size. around: the id of what is not foreground; None where the foreground is not asked.
    """

    cells: Sequence[NDArray[np.integer[Any]]] | None = None
    objects: NDArray[np.integer[Any]] | None = None
    pixels: Iterable[NDArray[np.integer[Any]]] | None = None
    around: int | None = None


class Work(Protocol):
    """What a protocol is handed: maps and labels, and the services it may use. No files, no devices of its own."""

    classes: int
    background: int | None
    device: str
    class_names: tuple[str, ...]
    foreground: bool
    """The method gives a foreground of its own."""

    def maps(self, split: str = "eval") -> Maps:
        """The maps of the scored split ("eval") or of the train split ("train")."""
        ...

    def remember(
        self, record: Mapping[str, Any], compute: Callable[[], dict[str, NDArray[Any]]], *, keep: bool
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays that `compute()` returns, computed once per command and record.

        record: plain data that names everything beside the maps of the scored split that changes the arrays.
        keep: True for arrays that are worth having in the cache for later commands.
        """
        ...

    def count(
        self,
        assignments: Sequence[NDArray[np.integer[Any]]],
        clusters: int,
        *,
        inside: ObjectSettings | None = None,
    ) -> Counts:
        """Per-picture counts of cluster maps (h, w) given at feature resolution, ids below `clusters`.

        Each is brought to the size of its label map by nearest neighbour, following the map's geometry.
        inside: pixels outside this foreground are of cluster 0, whatever their cell is.
        """
        ...

    def cells(self, split: str, inside: ObjectSettings) -> Sequence[NDArray[np.bool_]]:
        """The cells (h, w) of every map of "eval" or "train" that hold a pixel of the picture's foreground."""
        ...

    def objects(self, split: str, how: ObjectSettings, *, labels: bool = True) -> Objects:
        """The object of every picture of "eval" or "train": its pooled embedding, and the labels in and around it.

        how: `foreground` is `adapter` or `masks:NAME` here. labels: False where they are not needed.
        """
        ...

    def say(self, text: str) -> None:
        """Tell the user one line (and, where it concerns the figures, return it in `Outcome.notes` too)."""
        ...

    def progress(self, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
        """A bar with an ETA around work of `total` steps; call what it gives with the steps done."""
        ...
