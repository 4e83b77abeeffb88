"""From pictures to maps: one forward pass per picture, shared by every protocol, K and seed of the command.

Maps stream in list order. The stated rule for a second pass: where the maps of the split fit in the cache (half of the
free disk, at most `cache.LARGEST` bytes) they are written while they stream and read from there; else, and always for
methods without weights, whose maps cost less to compute than to read, they are computed again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bench import images
from bench.cache import Cache, Entry, Keeper, record_key
from bench.clock import Clock
from bench.contracts import Adapter, Dataset
from bench.dense import Axis, axis, cells_of
from bench.errors import FeatureError, InputError, StorageError
from bench.prefetch import prefetch
from bench.records import Tap
from bench.settings import InputSettings, parse_size

__all__ = ["LARGEST_FEATURE", "Layout", "Runtime", "SplitMaps", "batches", "grid", "pictures_at_once"]

log = logging.getLogger(__name__)


PIXELS_A_BATCH = {"cpu": 1 << 17, "cuda": 1 << 22}
"""A CPU is fastest while the activations of a batch stay near its cache; a GPU wants a dozen pictures of 512²."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How the work is done: device (`cpu`, `cuda`, `cuda:1`), precision, pictures a batch, threads that decode.

    batch_size: 0 = as many as have `PIXELS_A_BATCH` of the device together, at least one.
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 0
    workers: int = 1
    clock: Clock = field(default_factory=Clock)
    track: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda items, total, what: items

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]


LARGEST_FEATURE = 2.0**100
"""Sums over pixels and dimensions of anything larger may leave the range of float32; nothing sane comes near it."""


def grid(tap: Tap, picture: tuple[int, int], extent: tuple[int, int], pad_to: int) -> tuple[int, int]:
    """(h, w) of a tap's map: picture (H, W) at its own size, extent: its size after stretching, before padding."""
    if tap.frame == "label":
        return picture
    height, width = (math.ceil((math.ceil(side / pad_to) * pad_to - 2 * tap.offset) / tap.stride) for side in extent)
    return height, width


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the cells of one tap lie over a list of pictures.

    given: (h, w) of the map of each picture as the network gives it. grids: the same without the rows and columns of
    cells that lie wholly in what was padded, which is all that anybody reads. vectors: the sum of h·w of the grids.
    """

    tap: Tap
    given: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]
    vectors: int

    @classmethod
    def of(cls, tap: Tap, sizes: Sequence[tuple[int, int]], extents: Sequence[tuple[int, int]], pad_to: int) -> Layout:
        """sizes: (H, W) of the pictures. extents: the same at the network's input, before padding."""
        given = tuple(grid(tap, size, extent, pad_to) for size, extent in zip(sizes, extents, strict=True))
        grids = tuple(_touching(tap, cells, extent) for cells, extent in zip(given, extents, strict=True))
        return cls(tap, given, grids, sum(h * w for h, w in grids))


def _touching(tap: Tap, cells: tuple[int, int], extent: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the cells of a map that touch the picture."""
    if tap.frame == "label":
        return cells
    height, width = (cells_of(side, count, tap.stride, tap.offset) for side, count in zip(extent, cells, strict=True))
    return height, width


class SplitMaps:
    """The maps of some taps of one method over a list of pictures; implements `bench.contracts.Maps` for the first.

    taps: names; all are taken in one forward pass and kept in one cache entry. What does not name a tap speaks of the
    first of `layouts`. record: plain data that names everything that changes the maps; its hash is their key in the
    cache, where maps without a record never are.
    cheap: computing the maps costs less than reading them, so they are not kept. user_code: what the network raises is
    the user's to mend, and told in one line.
    """

    def __init__(
        self,
        adapter: Adapter,
        dataset: Dataset,
        names: Sequence[str],
        *,
        taps: Sequence[str],
        inputs: InputSettings,
        runtime: Runtime,
        cache: Cache,
        record: Mapping[str, Any] | None,
        cheap: bool = False,
        user_code: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.sizes = tuple(dataset.size(name) for name in self.names)
        stretched = parse_size(inputs.size)
        self.extents = tuple(stretched or size for size in self.sizes)
        self._kept = tuple(
            Layout.of(adapter.taps[name], self.sizes, self.extents, adapter.pad_to) for name in dict.fromkeys(taps)
        )
        self.dtype = np.dtype(inputs.dtype)
        self.nbytes = sum(layout.vectors * layout.tap.channels for layout in self._kept) * self.dtype.itemsize
        self.key = record_key(record or {})
        self._show(self._kept)
        self._record = record
        self.cheap = cheap
        self._user_code = user_code
        self._adapter = adapter
        self._dataset = dataset
        self._interpolation = inputs.interpolation
        self._runtime = runtime
        self._cache = cache
        self._entry: Entry | None = None

    def _show(self, layouts: Sequence[Layout]) -> None:
        self.layouts = tuple(layouts)
        self.tap, self.grids, self.vectors = self.layouts[0].tap, self.layouts[0].grids, self.layouts[0].vectors
        self.channels = self.tap.channels

    def alone(self, which: int) -> SplitMaps:
        """The same maps without the other features: one tap, and what the network says of the foreground.

        They lie in the same entry of the cache, which whoever is first to read them fills with all taps.
        """
        if len(self.layouts) == 1:
            return self
        twin = copy(self)
        beside = (layout for layout in self.layouts if layout.tap.kind == "foreground_logit")
        twin._show(tuple(dict.fromkeys((self.layouts[which], *beside))))
        twin.key = record_key({"maps": self.key, "tap": twin.tap.name})
        return twin

    @property
    def cached(self) -> bool:
        """True when the maps need no forward pass."""
        return self._entry is not None or (self._record is not None and self._cache.holds(self._record))

    def tap_of(self, which: int = 0) -> Tap:
        """Facts of one of the taps."""
        return self.layouts[which].tap

    def grid(self, index: int, which: int = 0) -> tuple[int, int]:
        """(h, w) of a picture's map."""
        return self.layouts[which].grids[index]

    def axes(self, index: int, which: int = 0, *, at: Literal["label", "input"] = "label") -> tuple[Axis, Axis]:
        """How the rows and the columns of picture `index` read the cells of its map, bilinearly.

        at: the picture at its own size, or at that of the network's input before padding.
        """
        tap, cells = self.layouts[which].tap, self.layouts[which].grids[index]
        extents = self.sizes[index] if tap.frame == "label" else self.extents[index]
        pixels = self.sizes[index] if at == "label" else extents
        rows, columns = (
            axis(side, extent, count, tap.stride, tap.offset)
            for side, extent, count in zip(pixels, extents, cells, strict=True)
        )
        return rows, columns

    def hold(self) -> HeldMaps:
        """The maps in the cache, for reading in any order; computed now where they are not there yet.

        Raises StorageError where they do not fit.
        """
        self._entry = self._find()
        if self._entry is None:
            self.cheap = False  # reading them in any order needs them kept, whatever they cost
            for _ in self.together():
                pass
        if self._entry is None:
            raise StorageError(
                f"maps of {self.nbytes / 1e9:.2f} GB must be kept to be learnt from, and the cache {self._cache.root} "
                f"has no room for them ({self._cache.free() / 1e9:.1f} GB free, half of it is used at most): choose a "
                "larger disk with --cache, keep them with --set dtype=float16, or take a preset that computes them "
                "for every epoch"
            )
        return HeldMaps(self._entry, [(self._array_name(layout), layout) for layout in self.layouts])

    def cells(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For picture `index`: the map row of each picture row (H,) and the map column of each picture column (W,)."""
        (height, width), (rows, columns) = self.sizes[index], self.grids[index]
        extent = self.sizes[index] if self.tap.frame == "label" else self.extents[index]
        stride, offset = self.tap.stride, self.tap.offset
        return (
            images.cell_index(height, extent[0], rows, stride, offset),
            images.cell_index(width, extent[1], columns, stride, offset),
        )

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for (block,) in self._pass(self.layouts[:1]):
            yield block

    def together(self) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """One array (h·w, D) of each tap per picture, from one pass."""
        return self._pass(self.layouts)

    def _pass(self, layouts: Sequence[Layout]) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """Some of the taps, from the cache where they lie there."""
        self._entry = self._find()
        pictures = self._compute_and_keep(layouts) if self._entry is None else self._read(self._entry, layouts)
        for blocks in self._runtime.track(pictures, len(self.names), "features"):
            yield tuple(block.astype(np.float32, copy=False) for block in blocks)

    def _find(self) -> Entry | None:
        return self._entry or (None if self._record is None else self._cache.find(self._record))

    def _read(self, entry: Entry, layouts: Sequence[Layout]) -> Iterator[tuple[NDArray[Any], ...]]:
        streams = [entry.blocks(self._array_name(layout), (h * w for h, w in layout.grids)) for layout in layouts]
        for _ in self.names:
            with self._runtime.clock.phase("read cache"):
                blocks = tuple(next(stream) for stream in streams)
            yield blocks

    def _array_name(self, layout: Layout) -> str:
        """What the arrays of a cache entry are called: the first tap's `maps`, the others' by number."""
        index = self._kept.index(layout)
        return f"maps{index}" if index else "maps"

    def _compute_and_keep(self, layouts: Sequence[Layout]) -> Iterator[tuple[NDArray[Any], ...]]:
        keeper = self._keeper()
        if keeper is None:
            yield from self.compute(layouts)
            return
        wanted = [self._kept.index(layout) for layout in layouts]
        names = [self._array_name(layout) for layout in self._kept]
        try:
            for blocks in self.compute(self._kept):
                with self._runtime.clock.phase("write cache"):
                    for name, block in zip(names, blocks, strict=True):
                        keeper.append(name, block)
                yield tuple(blocks[index] for index in wanted)
            self._entry = keeper.commit()
        finally:
            keeper.drop()

    def _keeper(self) -> Keeper | None:
        """Where the maps are kept; None where they are not worth it, or do not fit."""
        if self.cheap or self._record is None:
            return None
        if not self._cache.room_for(self.nbytes):
            log.info("maps of %.1f GB do not fit in the cache: they are computed for every pass", self.nbytes / 1e9)
            return None
        return self._cache.keeper(self._record)

    def _batches(self) -> Iterator[list[int]]:
        """Consecutive pictures of one input size: a function of the split list and the batch size alone."""

        def shape(index: int) -> tuple[tuple[int, int], ...]:
            own = (self.sizes[index],) if self._adapter.needs_labels else ()
            return (self.extents[index], *own)

        return batches([shape(index) for index in range(len(self.names))], self._runtime)

    def _load(self, batch: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """uint8 pictures (B, 3, H, W), stretched and padded, and label maps (B, H', W') where the method needs them."""
        pictures = []
        for index in batch:
            picture = self._dataset.picture(self.names[index])
            picture = images.resize_picture(picture, self.extents[index], self._interpolation)
            pictures.append(images.pad_picture(picture, self._adapter.pad_to))
        labels = None
        if self._adapter.needs_labels:
            labels = np.stack([self._dataset.label(self.names[index]) for index in batch])
        return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)), labels

    def compute(self, layouts: Sequence[Layout] | None = None) -> Iterator[tuple[NDArray[Any], ...]]:
        """One forward pass over the pictures, cache or not; as `together`, in the dtype that is kept."""
        layouts = self.layouts if layouts is None else layouts
        for batch, (pictures, labels) in prefetch(self._batches(), self._load, self._runtime.workers):
            with self._runtime.clock.phase("forward"), self._told_in_one_line(batch):
                maps = self._forward(pictures, labels, [layout.tap.name for layout in layouts])
            streams = [self._vectors(batch, maps[layout.tap.name], layout) for layout in layouts]
            yield from zip(*streams, strict=True)

    @contextmanager
    def _told_in_one_line(self, batch: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._user_code or isinstance(error, InputError):
                raise
            pictures = ", ".join(self.names[index] for index in batch)
            text = " ".join(str(error).split())
            raise FeatureError(f"the network failed on {pictures}: {type(error).__name__}: {text}") from error

    def _forward(
        self, pictures: NDArray[np.uint8], labels: NDArray[np.uint8] | None, taps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        device, kind = self._runtime.device, self._runtime.kind
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._runtime.precision == "bf16"):
            inputs = self._adapter.preprocess(torch.from_numpy(pictures).to(device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            given = None if labels is None else torch.from_numpy(labels).to(device)
            maps = self._adapter(inputs, tuple(taps), labels=given)
            return {name: values.float() for name, values in maps.items()}

    def _vectors(self, batch: Sequence[int], maps: torch.Tensor, layout: Layout) -> Iterator[NDArray[Any]]:
        """(B, D, h, w) -> one (h·w, D) array per picture, in the dtype that is kept."""
        given, (height, width) = layout.given[batch[0]], layout.grids[batch[0]]  # those of a batch are equal
        name, channels = layout.tap.name, layout.tap.channels
        if maps.shape[1:] != (channels, *given):
            raise FeatureError(
                f"the map {name!r} of {self.names[batch[0]]} is a grid of {tuple(maps.shape[2:])} of width "
                f"{maps.shape[1]}, expected a grid of {given} of width {channels}: correct stride, offset or channels "
                "of the adapter's tap"
            )
        rows = maps[:, :, :height, :width].permute(0, 2, 3, 1).flatten(1, 2).contiguous().cpu()
        for index, block in zip(batch, rows.to(getattr(torch, self.dtype.name)), strict=True):
            self._check_range(block, index, name)
            yield block.numpy()

    def _check_range(self, block: torch.Tensor, index: int, name: str) -> None:
        """Refuse NaN, infinity, and what sums of squares cannot hold."""
        low, high = (float(bound) for bound in block.aminmax())
        if max(-low, high) <= LARGEST_FEATURE:  # false for NaN too
            return
        if not torch.isfinite(block).all():
            raise FeatureError(
                f"the map {name!r} of picture {self.names[index]!r} holds NaN or infinite values as "
                f"{self.dtype}: check the checkpoint, or use --precision fp32 and --set dtype=float32"
            )
        raise FeatureError(
            f"the map {name!r} of picture {self.names[index]!r} holds values of {max(-low, high):.1e}, expected at "
            f"most {LARGEST_FEATURE:.1e}, beyond which sums overflow: check the checkpoint and the scale of the input"
        )


class HeldMaps:
    """Maps of a complete cache entry, mapped into memory; implements `bench.contracts.Held`."""

    def __init__(self, entry: Entry, arrays: Sequence[tuple[str, Layout]]) -> None:
        """arrays: what each is called in the entry, and where its cells lie."""
        self._arrays = [entry.array(name, private=True) for name, _ in arrays]
        self._starts = [np.cumsum([0, *(h * w for h, w in layout.grids)]) for _, layout in arrays]

    def block(self, index: int, which: int = 0) -> NDArray[np.float32]:
        """The map (h·w, D) of a picture and a tap, read when it is looked at."""
        starts = self._starts[which]
        return np.asarray(self._arrays[which][starts[index] : starts[index + 1]], dtype=np.float32)


def pictures_at_once(runtime: Runtime, extent: tuple[int, int]) -> int:
    """How many pictures of (H, W) pixels go through a network together."""
    return runtime.batch_size or max(PIXELS_A_BATCH[runtime.kind] // math.prod(extent), 1)


def batches(shapes: Sequence[tuple[tuple[int, int], ...]], runtime: Runtime) -> Iterator[list[int]]:
    """Indices of consecutive pictures whose shapes are equal; a shape starts with the (H, W) of the network's input."""
    for (extent, *_), run in groupby(range(len(shapes)), key=shapes.__getitem__):
        size = pictures_at_once(runtime, extent)
        indices = iter(run)
        while batch := list(islice(indices, size)):
            yield batch
