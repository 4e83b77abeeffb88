"""Labels from nearest neighbours: a bounded memory of labelled vectors, exact search in it, attention over its labels.

Pure functions on arrays. Vectors are of unit length, so that their products are cosines. faiss and torch are imported
by what uses them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bench.cluster import normalize_l2, require_faiss
from bench.errors import SettingError

__all__ = ["ENGINES", "Memory", "Search", "attend", "draw", "recall", "room", "shares", "soft_labels"]

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]

_QUERIES = 4096  # looked up at a time
_SIMILARITIES = {"cpu": 1 << 22, "cuda": 1 << 28}  # per matrix product of the torch engine


# ----------------------------------------------------------------------------------------------------------- the memory


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Labelled vectors to look up in.

    vectors: float32 (N, D) of unit length, C-contiguous. labels: float32 (N, C), each row sums to 1.
    """

    vectors: Floats
    labels: Floats

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self.labels.nbytes


def shares(cells: Integers, places: int) -> NDArray[np.int64]:
    """How many of each picture's cells (P,) a memory of so many places takes, int64 (P,).

    All of them where they fit; else the same number of each picture, fewer where it has fewer, and one more of pictures
    evenly spaced over the list, so that every place is taken.
    """
    counts = np.asarray(cells, np.int64)
    if counts.sum() <= places:
        return counts
    ascending = np.sort(counts)
    smaller = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    # The level that pictures from the i-th smallest on share, if all before it are taken whole: the first that fits.
    levels = (places - smaller) // np.arange(len(counts), 0, -1)
    level = levels[np.argmax(levels < ascending)]
    taken: NDArray[np.int64] = np.minimum(counts, level)
    more = np.flatnonzero(counts > level)
    left = places - int(taken.sum())
    taken[more[np.arange(left) * len(more) // max(left, 1)]] += 1
    return taken


def soft_labels(
    cell: Integers, label: Integers, pixels: Integers, *, cells: int, classes: int, void: int | None
) -> Floats:
    """The share of each class among the labelled pixels of each cell, float32 (cells, classes).

    cell, label, pixels: so many pixels of a label in a cell, `classes` for void; each (cell, label) once.
    void: the class that void pixels count as; None: they do not count. The row of a cell without any pixel is zero.
    """
    if void is None:
        held = label < classes
        cell, label, pixels = cell[held], label[held], pixels[held]
    else:
        label = np.where(label == classes, void, label)
    index = cell.astype(np.int64) * classes + label
    table = np.bincount(index, weights=pixels, minlength=cells * classes).reshape(cells, classes)
    return np.asarray(table / np.maximum(table.sum(1, keepdims=True), 1), np.float32)


def draw(
    labels: Floats, number: int, sampling: Literal["balanced", "uniform"], rng: np.random.Generator
) -> NDArray[np.intp]:
    """The cells of a picture that a memory takes, ascending: all that have a label, or `number` of them.

    labels: (cells, C), zero where a cell has none. Every cell draws a number evenly between 0 and its score, and the
    smallest are taken. uniform: all scores are 1. balanced: the score is the sum, over the classes in the cell, of how
    many cells of the picture hold that class, which favours what is rare in the picture (the rule of open-hummingbird).
    """
    labelled = np.flatnonzero(labels.any(1))
    if len(labelled) <= number:
        return labelled
    drawn = rng.random(len(labelled))
    if sampling == "balanced":
        held = labels[labelled] > 0
        drawn *= held @ held.sum(0)
    return np.sort(labelled[np.argpartition(drawn, number)[:number]])


def room(device: str) -> int:
    """Bytes of memory that there are for vectors on `cpu`, `cuda` or `cuda:N`, used or not.

    What goes to a GPU is gathered in the memory of the machine.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device == "cpu":
        return machine
    import torch

    return min(machine, int(torch.cuda.mem_get_info(device)[1]))


# --------------------------------------------------------------------------------------------------------------- search

Search = Callable[[Floats, int], tuple[Floats, NDArray[np.int64]]]
"""(queries (n, D), k) -> cosines, float32 (n, k), largest first, and the places of these vectors, int64 (n, k)."""


def _by_faiss(vectors: Floats, device: str) -> Search:
    require_faiss("nearest neighbours need")
    import faiss

    # The search of IndexFlatIP, without the copy of the vectors that an index keeps.
    def search(queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        found: tuple[Any, Any] = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found[0], np.asarray(found[1], np.int64)

    return search


def _by_torch(vectors: Floats, device: str) -> Search:
    import torch

    try:
        held = torch.from_numpy(vectors).to(device)
    except torch.OutOfMemoryError as error:
        raise SettingError(
            f"{vectors.nbytes / 1e9:.2f} GB of vectors do not fit on {device}: ask for fewer, or search on the "
            "processor, engine=faiss"
        ) from error
    most = _SIMILARITIES[held.device.type]

    def search(queries: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        wanted = torch.from_numpy(queries).to(device)
        best = wanted.new_empty(len(wanted), 0)
        places = torch.empty(len(wanted), 0, dtype=torch.int64, device=wanted.device)
        rows = max(most // len(wanted), k)
        for start in range(0, len(held), rows):
            part = held[start : start + rows]
            values, found = (wanted @ part.T).topk(min(k, len(part)), dim=1)
            values, found = torch.cat([best, values], 1), torch.cat([places, found + start], 1)
            best, order = values.topk(min(k, values.shape[1]), dim=1)
            places = found.gather(1, order)
        return best.cpu().numpy(), places.cpu().numpy()

    return search


ENGINES: Mapping[str, Callable[[Floats, str], Search]] = {"faiss": _by_faiss, "torch": _by_torch}
"""Ways to search exactly among vectors, float32 (N, D), by name: faiss on the processor, torch on the device."""


# ------------------------------------------------------------------------------------------------------------ attention


def recall(queries: Floats, memory: Memory, search: Search, neighbours: int, temperature: float) -> Floats:
    """Soft labels of vectors (n, D) of any length, float32 (n, C): attention over their nearest in the memory.

    search: in the memory's vectors. neighbours: at most the memory's size. Equal vectors are looked up once. The memory
    beside the result is that of 4,096 vectors and their neighbours.
    """
    first, number = _distinct(queries)
    answers = np.empty((len(first), memory.labels.shape[1]), np.float32)
    for start in range(0, len(first), _QUERIES):
        part = slice(start, start + _QUERIES)
        similarities, places = search(normalize_l2(queries[first[part]]), neighbours)
        answers[part] = attend(similarities, places, memory.labels, temperature)
    return answers[number]


def attend(similarities: Floats, places: NDArray[np.int64], labels: Floats, temperature: float) -> Floats:
    """Σ_j softmax_j(similarity / temperature) · label, float32 (n, C) (Balažević et al. 2023).

    similarities, places: (n, k) of the neighbours among the labels (N, C).
    """
    scaled = similarities.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    n, k = places.shape
    # As a sparse matrix: the labels of all neighbours are never gathered. float32, or all labels would be converted.
    rows = np.arange(0, n * k + 1, k)
    matrix = csr_array((weights.astype(np.float32).ravel(), places.ravel(), rows), shape=(n, len(labels)))
    return np.asarray(matrix @ labels, np.float32)


def _distinct(vectors: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each different vector stands first, (u,), and which of these every vector equals, (n,)."""
    rows = np.ascontiguousarray(vectors)
    bits = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    _, first, number = np.unique(bits, return_index=True, return_inverse=True)
    return first, number.reshape(-1)
