"""Cross-entropy and predictions of linear heads at the size of the labels, for many heads at once.

A head's logits are brought bilinearly to its label maps. That step is linear, so loss and gradient are summed over
bands of a picture: each band is upsampled, reduced and pulled back to the cells while it is in the processor's cache,
and the logits at label size are never held as a whole. What happens to one head, NaN included, does not reach the
others; on a CPU a head's result has the same bits whatever the number of heads and threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["IGNORED", "Axis", "argmax", "axis", "cells_of", "cross_entropy", "weighted_pixels"]

IGNORED = 255
"""The label of pixels that count nowhere."""

_NUMBERS_AT_ONCE = {"cpu": 2**18, "cuda": 2**25}
"""Upsampled logits per band: on a CPU a band stays in the cache of the core that works on it."""

_LEAST, _NOTHING = -46.0, 1.1e-20
"""A probability below e^-46 is 0: it adds nothing to a sum of at least 1, in float64 neither. A processor's exp and
products are several times slower where they underflow, as they did for the large logits of unscaled features."""

Task = tuple[int, slice]
"""A picture of the batch, and some of its heads."""


# --- interpolation -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How the pixels along one axis read the cells of a map by linear interpolation.

    Pixel p is (1 - weight[p]) · x[lower[p]] + weight[p] · x[min(lower[p] + 1, cells - 1)].
    cells: length of the map. lower: int64 (pixels,), ascending, 0 … cells-1. weight: float64 (pixels,), 0 … 1.
    """

    cells: int
    lower: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lower)

    def matrix(self, like: torch.Tensor) -> torch.Tensor:
        """The interpolation as a matrix (pixels, cells), with the number format and device of `like`."""
        # The vectors travel, not the matrix: few enough bytes not to wait for a GPU.
        lower = torch.from_numpy(self.lower).to(like.device)[:, None]
        weight = torch.from_numpy(self.weight).to(like.device)[:, None]
        matrix = torch.zeros(len(self), self.cells, dtype=torch.float64, device=like.device)
        matrix.scatter_add_(1, lower, 1 - weight)
        return matrix.scatter_add_(1, (lower + 1).clamp(max=self.cells - 1), weight).to(like.dtype)

    def touched(self, pixels: slice) -> slice:
        """The cells that a range of pixels reads."""
        return slice(int(self.lower[pixels.start]), min(int(self.lower[pixels.stop - 1]) + 2, self.cells))


def axis(pixels: int, extent: float, cells: int, stride: float, offset: float = 0.0) -> Axis:
    """Linear interpolation between the centres of cells; outside the outermost centres the edge value holds.

    Output pixel y of an axis that was resized from `pixels` to `extent` input pixels (before padding) has its centre at
    (y + 1/2) · extent / pixels in input coordinates, cell i at offset + (i + 1/2) · stride. `bench.images.cell_index`
    is the nearest neighbour on the same grid. Where extent = cells · stride and offset = 0 this is torch's bilinear
    interpolation with align_corners False.

    stride, offset: as in `Tap`, in input pixels.
    """
    centres = (2 * np.arange(pixels, dtype=np.float64) + 1) * extent / (2 * pixels)
    position = np.clip((centres - offset) / stride - 0.5, 0, cells - 1)
    lower = np.floor(position).astype(np.int64)
    return Axis(cells, lower, position - lower)


def cells_of(extent: float, cells: int, stride: float, offset: float = 0.0) -> int:
    """How many of the first cells of an axis touch the picture: the others lie wholly in what was padded.

    extent: pixels of the picture at the network's input, before padding. stride, offset: as in `bench.records.Tap`.
    """
    return min(cells, max(math.ceil((extent - offset) / stride), 1))


class _Upsampling:
    """Maps of a few heads at the size of the labels, band by band, and the way back; its buffers are used again."""

    def __init__(self, rows: Axis, columns: Axis, classes: int, like: torch.Tensor) -> None:
        """like: a tensor with the number format and device to compute in."""
        self.classes, self.rows, self.columns = classes, rows, columns
        self.down, self.across = rows.matrix(like), columns.matrix(like)
        self.like = like
        self._buffers: dict[str, torch.Tensor] = {}

    def bands(self, maps: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows, and their upsampled logits (rows, n, C, W) for maps (n, C, h, w); each overwrites the one before."""
        shape = (len(maps), self.classes, len(self.columns))
        lines = maps.permute(2, 0, 1, 3).to(self.like.dtype).reshape(-1, self.columns.cells)
        wide = self._buffer("wide", len(lines), len(self.columns))
        torch.mm(lines, self.across.T, out=wide)
        wide = wide.view(self.rows.cells, -1)
        step = max(_NUMBERS_AT_ONCE[self.like.device.type] // wide.shape[1], 1)
        for top in range(0, len(self.rows), step):
            band = slice(top, min(top + step, len(self.rows)))
            cells = self.rows.touched(band)
            high = self._buffer("band", band.stop - band.start, wide.shape[1])
            yield band, torch.mm(self.down[band, cells], wide[cells], out=high).view(-1, *shape)

    def new_rows(self, heads: int) -> torch.Tensor:
        """Where `add` collects the gradient of a few heads at the rows of cells: zero, (h, heads · C · W)."""
        return self._buffer("rows", self.rows.cells, heads * self.classes * len(self.columns)).zero_()

    def add(self, rows: torch.Tensor, slope: torch.Tensor, band: slice) -> None:
        """Add the part of a band whose logits have the gradient `slope`, (rows, n, C, W)."""
        cells = self.rows.touched(band)
        rows[cells].addmm_(self.down[band, cells].T, slope.flatten(1))

    def at_cells(self, rows: torch.Tensor) -> torch.Tensor:
        """The gradient at the maps, (n, C, h, w), once all bands were added."""
        narrow = rows.view(-1, len(self.columns)) @ self.across
        return narrow.view(self.rows.cells, -1, self.classes, self.columns.cells).permute(1, 2, 0, 3)

    def _buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Memory for a matrix; the largest that was asked for comes first, and is kept."""
        numbers = shape[0] * shape[1]
        if name not in self._buffers or len(self._buffers[name]) < numbers:
            self._buffers[name] = self.like.new_empty(numbers)
        return self._buffers[name][:numbers].view(shape)


def _tasks(pictures: int, heads: int, numbers: int, device: torch.device) -> list[Task]:
    """What is computed at once: a head on a CPU, elsewhere as many as fill a band. numbers: a head's logits."""
    step = 1 if device.type == "cpu" else max(_NUMBERS_AT_ONCE["cuda"] // numbers, 1)
    firsts = range(0, heads, step)
    return [(picture, slice(first, min(first + step, heads))) for picture in range(pictures) for first in firsts]


def _share(tasks: list[Task], work: Callable[[Iterable[Task]], None], device: torch.device) -> None:
    """Do the tasks: on a CPU in as many threads as torch has, each of which computes alone.

    The threads of a single operation would wait for the slowest of them after each band, which is thousands of times a
    step, and for long where other programs (the workers that read pictures) want the cores too.
    """
    if device.type != "cpu":
        return work(tasks)
    threads, queue, inference = torch.get_num_threads(), iter(tasks), torch.is_inference_mode_enabled()

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # neither reaches a new thread
            work(queue)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(run) for _ in range(min(threads, len(tasks)))]:
                done.result()
    finally:
        torch.set_num_threads(threads)  # for threads to come: this one never had another number


# --- the loss ----------------------------------------------------------------------------------------------


def weighted_pixels(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What each head's loss is divided by: the sum of weight · labelled pixels over pictures, float64 (heads,).

    labels: uint8 (B, H, W). weights: (heads, B). Sums over the parts of a batch, or over processes, add up.
    """
    return weights.double() @ (labels != IGNORED).sum((1, 2)).double()


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: Axis,
    columns: Axis,
    weights: torch.Tensor,
    normaliser: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of each head at the size of the labels, (heads,); differentiable once in the logits.

    The loss of a head is Σ weight · (log Σ_c exp z_c - z_label) / normaliser over the pictures and their labelled
    pixels, z the logits brought bilinearly to the label's size. It is 0, without gradient, where the normaliser is,
    and a picture of weight 0 has no part in it. Computed in float64 for logits in float64, else in float32, autocast
    or not. The gradient comes with the loss when it is asked for: `backward` only scales it.

    logits: (B, heads, C, h, w), C at most 255, in any layout. labels: uint8 (B, H, W), below C, or 255 where ignored.
    rows, columns: from h cells to H pixels, from w to W. weights: (heads, B), 0 or more.
    normaliser: (heads,); by default `weighted_pixels` of these labels. A batch in parts of different sizes, or over
    several processes, gives each part the sum over all, and adds the losses.
    Raises ValueError for shapes that do not fit together.
    """
    _check(logits.shape[1:], rows, columns)
    wanted = (logits.shape[0], len(rows), len(columns))
    if labels.shape != wanted or weights.shape != (logits.shape[1], logits.shape[0]):
        seen = f"{tuple(labels.shape)} and weights {tuple(weights.shape)}"
        raise ValueError(f"logits {tuple(logits.shape)} need labels {wanted} and weights (heads, B), got labels {seen}")
    total = weighted_pixels(labels, weights) if normaliser is None else normaliser.double()
    scale = torch.where(total[:, None] > 0, weights.double() / total[:, None], 0.0)
    gradient = torch.is_grad_enabled() and logits.requires_grad
    return cast(torch.Tensor, _CrossEntropy.apply(logits, labels, rows, columns, scale, gradient))


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy` with scale = weights / normaliser, float64 (heads, B)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        rows: Axis,
        columns: Axis,
        scale: torch.Tensor,
        gradient: bool,
    ) -> torch.Tensor:
        like = logits.new_empty(0, dtype=_computed_in(logits))
        sums = scale.new_empty(scale.shape)
        slopes = torch.empty_like(logits, dtype=like.dtype) if gradient else like  # in the layout of the logits

        def work(tasks: Iterable[Task]) -> None:
            upsampling = _Upsampling(rows, columns, logits.shape[2], like)
            for picture, heads in tasks:
                sums[heads, picture], slope = _loss_of(upsampling, logits[picture, heads], labels[picture], gradient)
                if slope is not None:
                    slopes[picture, heads] = slope

        with torch.autocast(logits.device.type, enabled=False):
            numbers = logits.shape[2] * labels[0].numel()
            _share(_tasks(logits.shape[0], logits.shape[1], numbers, logits.device), work, logits.device)
        if gradient:
            factors = scale.T[:, :, None, None, None].to(like)
            ctx.save_for_backward(slopes.mul_(factors).masked_fill_(factors == 0, 0))
        ctx.dtype = logits.dtype
        # A picture that is held out must not count, not even as NaN.
        return torch.where(scale > 0, sums * scale, 0.0).sum(1).to(like)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * upstream[:, None, None, None]).to(ctx.dtype), None, None, None, None, None


def _loss_of(
    upsampling: _Upsampling, maps: torch.Tensor, labels: torch.Tensor, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed cross-entropy of one picture, float64 (n,), and its gradient at the maps (n, C, h, w).

    maps: (n, C, h, w). labels: (H, W).
    """
    sums = maps.new_zeros(len(maps), dtype=torch.float64)
    rows = upsampling.new_rows(len(maps)) if gradient else None
    for band, logits in upsampling.bands(maps):
        valid = (labels[band] != IGNORED)[:, None, None]
        index = (labels[band].long()[:, None, None] * valid).expand(-1, len(maps), -1, -1)
        logits.sub_(logits.amax(2, keepdim=True))
        chosen = logits.gather(2, index)
        torch.threshold_(logits.clamp_(min=_LEAST).exp_(), _NOTHING, 0.0)
        total = logits.sum(2, keepdim=True)
        sums += total.log().sub_(chosen).mul_(valid).sum((0, 2, 3), dtype=torch.float64)
        if rows is not None:
            slope = logits.mul_(valid / total).scatter_add_(2, index, -valid.to(logits.dtype).expand_as(index))
            upsampling.add(rows, slope, band)
    return sums, None if rows is None else upsampling.at_cells(rows)


# --- predictions -------------------------------------------------------------------------------------------


def argmax(logits: torch.Tensor, rows: Axis, columns: Axis) -> torch.Tensor:
    """The class of the largest upsampled logit at every pixel, uint8 (heads, H, W); the smaller class wins a tie.

    logits: one picture's, (heads, C, h, w), C at most 255, in any layout. rows, columns: as for `cross_entropy`.
    Raises ValueError for shapes that do not fit together.
    """
    _check(logits.shape, rows, columns)
    like = logits.new_empty(0, dtype=_computed_in(logits))
    classes = logits.new_empty(len(logits), len(rows), len(columns), dtype=torch.uint8)

    def work(tasks: Iterable[Task]) -> None:
        upsampling = _Upsampling(rows, columns, logits.shape[1], like)
        for _, heads in tasks:
            for band, high in upsampling.bands(logits[heads]):
                classes[heads, band] = high.max(2).indices.transpose(0, 1)

    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        _share(_tasks(1, len(logits), logits.shape[1] * classes[0].numel(), logits.device), work, logits.device)
    return classes


def _computed_in(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check(shape: torch.Size, rows: Axis, columns: Axis) -> None:
    """shape: (heads, C, h, w)."""
    if tuple(shape[2:]) != (rows.cells, columns.cells):
        raise ValueError(
            f"logits of {shape[2]}×{shape[3]} cells need axes that read as many, got {rows.cells}×{columns.cells}"
        )
    if shape[1] > IGNORED:
        raise ValueError(f"labels are bytes and {IGNORED} is ignored: at most {IGNORED} classes, got {shape[1]}")
