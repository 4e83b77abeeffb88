"""From pictures to maps: one forward pass per picture, shared by every protocol, K and seed of the command.

Maps stream in list order. The stated rule for a second pass: where the maps of the split fit in the cache (half of the
free disk, at most `cache.LARGEST` bytes) they are written while they stream and read from there; else, and always for
methods without weights, whose maps cost less to compute than to read, they are computed again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import images
from bench.cache import Cache, Entry, Writer, record_key
from bench.clock import Clock
from bench.contracts import Adapter, Dataset
from bench.errors import FeatureError, InputError
from bench.records import Tap
from bench.settings import InputSettings, parse_size

__all__ = ["Runtime", "SplitMaps", "batches", "grid", "pick_device"]

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


def pick_device(wanted: str) -> str:
    """`auto` -> `cuda` where one is usable, else `cpu`; anything else as it is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def grid(tap: Tap, picture: tuple[int, int], extent: tuple[int, int], pad_to: int) -> tuple[int, int]:
    """(h, w) of a tap's map: picture (H, W) at its own size, extent: its size after stretching, before padding."""
    if tap.frame == "label":
        return picture
    height, width = (math.ceil((math.ceil(side / pad_to) * pad_to - 2 * tap.offset) / tap.stride) for side in extent)
    return height, width


class SplitMaps:
    """The maps of one tap of one method over a list of pictures; implements `bench.contracts.Maps`.

    record: plain data that names everything that changes the maps; its hash is their key in the cache.
    cheap: computing the maps costs less than reading them, so they are not kept. user_code: what the network raises is
    the user's to mend, and told in one line.
    """

    def __init__(
        self,
        adapter: Adapter,
        dataset: Dataset,
        names: Sequence[str],
        *,
        tap: str,
        inputs: InputSettings,
        runtime: Runtime,
        cache: Cache,
        record: Mapping[str, Any],
        cheap: bool = False,
        user_code: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.tap = adapter.taps[tap]
        self.sizes = tuple(dataset.size(name) for name in self.names)
        stretched = parse_size(inputs.size)
        self.extents = tuple(stretched or size for size in self.sizes)
        pairs = zip(self.sizes, self.extents, strict=True)
        self.grids = tuple(grid(self.tap, size, extent, adapter.pad_to) for size, extent in pairs)
        self.channels = self.tap.channels
        self.vectors = sum(h * w for h, w in self.grids)
        self.dtype = np.dtype(inputs.dtype)
        self.nbytes = self.vectors * self.channels * self.dtype.itemsize
        self.key = record_key(record)
        self._record = record
        self.cheap = cheap
        self._user_code = user_code
        self._adapter = adapter
        self._dataset = dataset
        self._interpolation = inputs.interpolation
        self._runtime = runtime
        self._cache = cache
        self._entry: Entry | None = None

    @property
    def cached(self) -> bool:
        """True when the maps need no forward pass."""
        return self._entry is not None or self._cache.holds(self._record)

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
        if self._entry is None:
            self._entry = self._cache.find(self._record)
        blocks = self._compute_and_keep() if self._entry is None else self._read(self._entry)
        for block in self._runtime.track(blocks, len(self.names), "features"):
            yield block.astype(np.float32, copy=False)

    def _read(self, entry: Entry) -> Iterator[NDArray[Any]]:
        blocks = entry.blocks("maps", (h * w for h, w in self.grids))
        for _ in self.names:
            with self._runtime.clock.phase("read cache"):
                block = next(blocks)
            yield block

    def _compute_and_keep(self) -> Iterator[NDArray[Any]]:
        writer = self._start_writing()
        try:
            for block in self.compute():
                if writer is not None:
                    writer = self._append(writer, block)
                yield block
            if writer is not None:
                self._entry = self._commit(writer)
                writer = None
        finally:
            if writer is not None:
                writer.drop()

    def _start_writing(self) -> Writer | None:
        if self.cheap:
            return None
        if not self._cache.room_for(self.nbytes):
            log.info("maps of %.1f GB do not fit in the cache: they are computed for every pass", self.nbytes / 1e9)
            return None
        try:
            return self._cache.writer(self._record)
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", self._cache.root, error)
            return None

    def _append(self, writer: Writer, block: NDArray[Any]) -> Writer | None:
        try:
            with self._runtime.clock.phase("write cache"):
                writer.append("maps", block)
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", self._cache.root, error)
            writer.drop()
            return None
        return writer

    def _commit(self, writer: Writer) -> Entry | None:
        try:
            return writer.commit()
        except OSError as error:
            log.warning("the cache %s cannot be written (%s): going on without it", self._cache.root, error)
            writer.drop()
            return None

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

    def compute(self) -> Iterator[NDArray[Any]]:
        """One forward pass over the pictures, cache or not; as iterating, in the dtype that is kept."""
        for batch, (pictures, labels) in prefetch(self._batches(), self._load, self._runtime.workers):
            with self._runtime.clock.phase("forward"), self._told_in_one_line(batch):
                maps = self._forward(pictures, labels)
            for index, block in zip(batch, self._vectors(batch, maps), strict=True):
                if block.shape != (math.prod(self.grids[index]), self.channels):
                    raise FeatureError(
                        f"the map {self.tap.name!r} of {self.names[index]} has {block.shape[0]} cells of width "
                        f"{block.shape[1]}, expected a grid of {self.grids[index]} of width {self.channels}: correct "
                        "stride, offset or channels of the adapter's tap"
                    )
                yield block

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

    def _forward(self, pictures: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> torch.Tensor:
        device = self._runtime.device
        kind = device.partition(":")[0]
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._runtime.precision == "bf16"):
            inputs = self._adapter.preprocess(torch.from_numpy(pictures).to(device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            given = None if labels is None else torch.from_numpy(labels).to(device)
            return self._adapter(inputs, (self.tap.name,), labels=given)[self.tap.name].float()

    def _vectors(self, batch: Sequence[int], maps: torch.Tensor) -> Iterator[NDArray[Any]]:
        """(B, D, h, w) -> one (h·w, D) array per picture, in the dtype that is kept; refuses NaN and infinity."""
        rows = maps.permute(0, 2, 3, 1).flatten(1, 2).contiguous().cpu()
        for index, block in zip(batch, rows.to(getattr(torch, self.dtype.name)), strict=True):
            if not torch.isfinite(block.float().sum()) and not torch.isfinite(block).all():
                raise FeatureError(
                    f"the map {self.tap.name!r} of picture {self.names[index]!r} holds NaN or infinite values as "
                    f"{self.dtype}: check the checkpoint, or use --precision fp32 and --set dtype=float32"
                )
            yield block.numpy()


def batches(shapes: Sequence[tuple[tuple[int, int], ...]], runtime: Runtime) -> Iterator[list[int]]:
    """Indices of consecutive pictures whose shapes are equal; a shape starts with the (H, W) of the network's input."""
    budget = PIXELS_A_BATCH["cuda" if runtime.device.startswith("cuda") else "cpu"]
    for (extent, *_), run in groupby(range(len(shapes)), key=shapes.__getitem__):
        size = runtime.batch_size or max(budget // math.prod(extent), 1)
        indices = iter(run)
        while batch := list(islice(indices, size)):
            yield batch


def prefetch(
    batches: Iterable[list[int]], load: Callable[[list[int]], Any], workers: int
) -> Iterator[tuple[list[int], Any]]:
    """(batch, load(batch)) in order, loaded ahead by `workers` threads; the result does not depend on their number."""
    if workers == 0:
        for batch in batches:
            yield batch, load(batch)
        return
    waiting: list[tuple[list[int], Future[Any]]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(load, batch)))
                if len(waiting) > workers:
                    first, future = waiting.pop(0)
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
