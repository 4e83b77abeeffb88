"""What adapters, data sets, estimators, protocols and learners must offer. `bench.testing` checks these promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bench.records import Tap

if TYPE_CHECKING:
    import torch

    from bench.dense import Axis
    from bench.metrics import Counts
    from bench.objects import Objects
    from bench.settings import ObjectSettings

__all__ = [
    "Adapter",
    "Dataset",
    "Estimator",
    "Examples",
    "Held",
    "Key",
    "Learner",
    "Lessons",
    "Maps",
    "Outcome",
    "Painting",
    "Predicted",
    "Scope",
    "Scores",
    "Variant",
    "VectorStream",
    "Work",
]

Key = tuple[int, int]
"""Epoch and index of a sample."""


@runtime_checkable
class Adapter(Protocol):
    """A method, ready to give maps. It is also an `nn.Module`; the harness moves it, sets eval mode and autocast.

    taps: the maps it can give. default_tap: the one protocols read unless told otherwise, where it is of a kind that
        they score; else they read the first of the kind that they score best.
    pad_to: the sides of the network's input must be multiples of this (pixels).
    needs_labels: True when `forward` must be given labels (only `oracle`).
    fingerprint: "" = the weights alone decide the maps; otherwise text that changes whenever the maps do.

    check_input(size), where it has it, raises for a network's input (H, W), padded, that it does not take; it is asked
    before anything is computed.

    Where it has them, fine-tuning reads three more: body_tap, the map of the body that a new decoder is put on (else
    the one that is read); decoder_tap, the map of a pre-trained decoder (else there is none); decoder_parameters(),
    those of that decoder.
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

    def twins(self, names: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Pairs (name, other) of different names whose pictures are equal; each name once."""
        ...

    def mask_sets(self) -> tuple[str, ...]:
        """Names of the sets of saliency masks."""
        ...

    def has_mask_set(self, mask_set: str) -> bool:
        """True for the name of a set, and for the path of a folder of masks: what holds a separator is a path."""
        ...

    def has_mask(self, name: str, mask_set: str) -> bool:
        """True when the set has a mask of the picture, or knows that it has no foreground."""
        ...

    def without_foreground(self, names: Sequence[str], mask_set: str) -> tuple[str, ...]:
        """Those of the pictures of which a set that `bench masks` made knows that they have none: all background."""
        ...

    def mask(self, name: str, mask_set: str) -> NDArray[np.bool_]:
        """Saliency mask of a picture, bool (H, W) of the picture's size."""
        ...

    def mask_fingerprint(self, names: Sequence[str], mask_set: str) -> str:
        """SHA-256 over the content of the mask files of a set and the names of their pictures, hex."""
        ...


@runtime_checkable
class Estimator(Protocol):
    """Tells how salient each pixel of a picture is; `bench masks` reads the pictures, cuts and writes the masks.

    A map depends on its own picture alone, whatever the batch.
    """

    def prepare(self, picture: NDArray[np.uint8]) -> Any:
        """All that can be done for one picture, uint8 RGB (H, W, 3), alone; pure, called ahead in several threads."""
        ...

    def saliency(self, prepared: Sequence[Any]) -> Sequence[NDArray[np.uint8]]:
        """The rest, for a batch at once: the map of each picture, uint8 (h, w), 0 … 255.

        It may be of any size: it is stretched to the picture's.
        """
        ...


class VectorStream(Protocol):
    """Vectors of the pictures of one split: can be read again and again, in list order.

    grids: (h, w) of every picture. channels: D. vectors: how many there are.
    """

    names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    channels: int
    vectors: int
    key: str

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """One array (n, D) per picture, in list order."""
        ...


class Maps(VectorStream, Protocol):
    """The maps of some taps over one split, all cells of them, row-major: one array is (h·w, D).

    What does not name a tap speaks of the first.
    """

    def together(self) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """One array (h·w, D) of each tap per picture, from one pass."""
        ...

    def hold(self) -> Held:
        """The same maps for reading in any order, computed once; StorageError where they do not fit."""
        ...

    def tap_of(self, which: int = 0) -> Tap:
        """Facts of one of the taps."""
        ...

    def grid(self, index: int, which: int = 0) -> tuple[int, int]:
        """(h, w) of a picture's map."""
        ...

    def axes(self, index: int, which: int = 0, *, at: Literal["label", "input"] = "label") -> tuple[Axis, Axis]:
        """How the rows and the columns of a picture read the cells of its map, bilinearly.

        at: the picture at its own size, or at that of the network's input before padding.
        """
        ...


class Held(Protocol):
    """Maps of a split that can be read in any order."""

    def block(self, index: int, which: int = 0) -> NDArray[np.float32]:
        """The map (h·w, D) of a picture and a tap."""
        ...


class Examples(Protocol):
    """Pictures with their labels, readable in any order and in any process."""

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture, uint8 RGB (H, W, 3), and label map, uint8 (H, W) with 255 = void."""
        ...

    def label(self, index: int) -> NDArray[np.uint8]:
        """The label map alone."""
        ...


class Learner(Protocol):
    """What is trained by `bench.trainer.train`."""

    def step(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """Leave the gradients of one batch in `.grad` and return figures, 0-d tensors; `loss` is among them.

        The number format of its passes and the sums over processes are the learner's own: the gradients are equal on
        all processes.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What a learner is taught within a protocol, and for how long.

    make: the sample of a key; collate: the batch of several samples. Both are handed to worker processes, unless
    `here`: what they read lies in memory or in a mapped file, and is put together in this process.
    samples: how many there are. batch: samples a step, over all processes. drop_last: a last, smaller batch of an epoch
    is left out where a full one precedes it. schedule: step -> what the learning rates are multiplied by.
    architecture: what is trained, plain data. after_epoch: called with the number of epochs done.
    """

    make: Callable[[Key], Any]
    collate: Callable[[Sequence[Any]], Any]
    samples: int
    batch: int
    steps: int
    schedule: Callable[[int], float]
    architecture: Mapping[str, Any]
    drop_last: bool = False
    after_epoch: Callable[[int], None] | None = None
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is known about a job before its first forward pass.

    vectors: cells of all maps of the scored split, of the coarsest of several taps; None while the method is not built.
    pictures: of the scored split. foreground: the method gives one of its own (None while it is not built yet).
    background: the data set has a background class.
    train: pictures of the train split, None where it is not there; train_split: its name.
    train_vectors: cells of all its maps, None while the method is not built, and for a protocol that does not read that
    split. channels: width of the map that is read, None while the method is not built.
    own_clusters: K, where the map that is read holds probabilities of the network's own clusters.
    decoder_tap: the map of the method's pre-trained decoder, "" where it carries none; None while it is not built.
    classifier: classes that the method's own classifier knows, 0 where it brings none; parameters: it has weights;
    method: its name. None and "" while it is not built.
    explicit: names of the settings that the user gave (the others came from the preset).
    """

    classes: int
    device: str
    vectors: int | None = None
    pictures: int = 0
    foreground: bool | None = None
    background: bool = True
    train: int | None = None
    train_split: str = "train"
    own_clusters: int | None = None
    train_vectors: int | None = None
    channels: int | None = None
    decoder_tap: str | None = None
    classifier: int | None = None
    parameters: bool | None = None
    method: str = ""
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row to be made: its settings, final, and what the reader of the row has to know about them.

    seeded: False where nothing depends on the seed, so that one is enough.
    headline: the matching rule of its headline, where that is not the card's.
    """

    settings: Any
    notes: tuple[str, ...] = ()
    seeded: bool = True
    headline: str = ""


@dataclass(slots=True)
class Outcome:
    """What a protocol returns for one seed.

    counts: per picture, the pixels of cluster k with label c; void in the last column.
    assignments: one (h, w) map of cluster ids per picture, or None.
    arrays: whatever is worth keeping beside the row for this seed (centroids, heads).
    shared: the same for what does not depend on the seed (PCA); kept once.
    notes: sentences for the reader of the table ("K was cut from 50 to 40: …").
    facts: what is worth keeping per seed: numbers, or numbers by name (inertia; the figures of every setting tried);
        `settled`: what the settings came to that follow from the method, by name, as tables read it.
    painting: the id of every pixel, whose layout is given to other pictures; by default that of the `assignments`.
    matched: class of each cluster (-1 = none) where ids mean classes from the start: nothing is matched with the
        labels then, and the only rule is `as_predicted`. among: the classes that means are taken over; empty = all.
    read: the maps of the method that were read, where they are not those of `Work.taps`.
    """

    counts: Counts
    assignments: list[NDArray[np.integer[Any]]] | None = None
    painting: Painting | None = None
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    shared: dict[str, NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    matched: NDArray[np.integer[Any]] | None = None
    among: tuple[int, ...] = ()
    read: tuple[str, ...] = ()

    @property
    def layout(self) -> Painting | None:
        """What is known of the ids of all pixels."""
        if self.painting is None and self.assignments is not None:
            return Painting(cells=self.assignments)
        return self.painting

    @property
    def given(self) -> tuple[int, ...]:
        """Ids that were given to the clustering, not found by it: that of what lies around objects."""
        around = None if self.painting is None else self.painting.around
        return () if around is None else (around,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Counts of predicted classes per picture, and the class of every pixel (H, W) of each, ready to be read again."""

    counts: Counts
    maps: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Painting:
    """Which id every pixel of some pictures has, in one of three forms.

    cells: one (h, w) map of ids per picture. objects: (N,) the id of each picture's object. pixels: one (H, W) map of
    ids per picture at its own size. around: the id of what is not foreground; None where the foreground is not asked.
    which: number of the tap whose cells they are.
    """

    cells: Sequence[NDArray[np.integer[Any]]] | None = None
    objects: NDArray[np.integer[Any]] | None = None
    pixels: Iterable[NDArray[np.integer[Any]]] | None = None
    around: int | None = None
    which: int = 0


Scores = Sequence[tuple[int, "torch.Tensor"]]
"""Of one picture: (number of the tap, scores (heads, classes, h, w)), for each tap that has heads."""


class Work(Protocol):
    """What a protocol is handed: maps and labels, and the services it may use. No files, no devices of its own."""

    classes: int
    background: int | None
    device: str
    precision: str
    """`fp32`, or `bf16`: forward passes run under autocast."""
    class_names: tuple[str, ...]
    foreground: bool
    """The method gives a foreground of its own."""
    taps: tuple[str, ...]
    """The maps that were asked for, in order; there is one unless the protocol compares layers."""
    method_name: str
    network: Adapter
    """The method itself, in eval mode, without gradients: copy it before changing it."""
    kind: str
    """What the map that is read holds (see `bench.records.Tap`)."""

    def maps(self, split: str = "eval") -> Maps:
        """The maps of the scored split ("eval") or of the train split ("train")."""
        ...

    def alone(self, which: int) -> Work:
        """The same work with one of the taps alone, from the same feature pass."""
        ...

    def part(self, pictures: Sequence[int]) -> Work:
        """The same work on the train split: these of its pictures stand for the scored ones, the rest for the split."""
        ...

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """The maps (B, h, w, D) of `taps` of some pictures, uint8 (B, 3, H, W) with sides that the network takes.

        In as many passes as suit the device, in eval mode and without gradients, on the device. labels: uint8
        (B, H', W') at the pictures' size before padding, for a network that needs them.
        """
        ...

    def maps_by(self, network: Adapter, tap: str, split: str = "eval") -> Maps:
        """The maps of another network over a split, computed for every pass: what was trained is scored by them."""
        ...

    def examples(self, split: str = "train") -> Examples:
        """Pictures and labels of the train split ("train") or of the scored one ("eval")."""
        ...

    def labels(self, split: str = "eval") -> Iterable[Sequence[NDArray[Any]]]:
        """Per picture the pixels of each label in each cell of its map: (cell, label, pixels) of the non-zero entries.

        cell: row-major over the grid. label: 0 … classes-1, and `classes` for void.
        """
        ...

    def label_counts(self, split: str = "train") -> NDArray[np.int64]:
        """Pixels of each class and, last, void, (pictures, classes + 1); every label map of the split is opened."""
        ...

    def count_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> list[Predicted]:
        """What maps of class scores predict on the scored split, one `Predicted` per head.

        scores: one entry per picture. Each map is brought to the picture's own size bilinearly, and a pixel is of the
        class of largest score, the smaller one among equals. at: `input` decides at the size of the network's input,
        and brings classes to the picture's size by nearest neighbour.
        """
        ...

    def paint_scores(
        self, maps: Maps, scores: Iterable[Scores], *, at: Literal["label", "input"] = "label"
    ) -> Iterator[NDArray[np.uint8]]:
        """The class of every pixel (H, W) by the first head, decided as in `count_scores`."""
        ...

    def train(self, learner: Learner, optimizer: torch.optim.Optimizer, lessons: Lessons, seed: int) -> None:
        """Teach a learner: the harness feeds it, watches it, keeps it, and goes on where a killed run was.

        Raises InputError naming the step when its loss is not a number.
        """
        ...

    def stored(self, key: str) -> Mapping[str, NDArray[Any]]:
        """The arrays that a finished row's first seed kept; key: its key, or the beginning of it.

        Raises UnknownNameError for a key that fits none or several, CheckpointError for a row of other weights.
        """
        ...

    def keep_list(self, name: str, lines: Sequence[str]) -> None:
        """Write a list of pictures into the folder of results, for people to use elsewhere; the row names its file."""
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
