"""Dense nearest neighbours at work: the memory is filled in one pass over the train split, and asked in one over the
scored pictures, one picture at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import neighbours
from bench.batches import generator
from bench.cluster import normalize_l2
from bench.contracts import Maps, Outcome, Painting, Scores, Work
from bench.errors import MismatchError
from bench.neighbours import Memory

from ._draw import require_labels
from ._hummingbird import HummingbirdSettings, places, size_text

__all__ = ["predict", "run"]

_SAMPLING = 6
"""What a generator is for: the first number of its key."""

_KEPT = 64_000_000
"""Bytes of the largest memory that is kept beside a row."""


def run(work: Work, settings: HummingbirdSettings, seed: int) -> Outcome:
    """Remember cells of the train split, and give every cell of the scored one the labels of its nearest."""
    if settings.void == "leave":
        pixels = work.label_counts("train")  # opens every label map, before any forward pass
        fix = "; --set hummingbird.void=background counts void as the background" if work.background is not None else ""
        require_labels(pixels, "the train split", fix)
    filled = _fill(work, settings, seed)
    memory = filled.memory
    notes = [_size(settings, filled), *_reservations(work, settings, memory)]
    for note in notes[1:]:
        work.say(note)
    maps = work.maps("eval")
    (found,) = work.count_scores(maps, _scores(work, settings, maps, memory))
    kept = {"vectors": memory.vectors, "labels": memory.labels} if memory.nbytes <= _KEPT else {}
    return Outcome(
        counts=found.counts,
        painting=Painting(pixels=found.maps),
        arrays={"memory": np.array(len(memory)), **kept},
        notes=tuple(notes),
        facts={"memory": len(memory), "memory_bytes": memory.nbytes, "train_cells": filled.cells},
        matched=np.arange(work.classes),
    )


def predict(work: Work, settings: HummingbirdSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The classes that a finished row's memory gives other pictures."""
    if "vectors" not in arrays:
        raise MismatchError(
            f"the memory of that row, {int(arrays['memory']):,} vectors, was not kept: more than {_KEPT // 1_000_000} "
            "MB are not; make a row with a smaller one, --set hummingbird.memory=N"
        )
    memory = Memory(np.ascontiguousarray(arrays["vectors"]), np.ascontiguousarray(arrays["labels"]))
    maps = work.maps("eval")
    return Painting(pixels=work.paint_scores(maps, _scores(work, settings, maps, memory)))


def _scores(work: Work, settings: HummingbirdSettings, maps: Maps, memory: Memory) -> Iterator[Scores]:
    search = neighbours.ENGINES[settings.engine](memory.vectors, work.device)
    nearest = min(settings.neighbours, len(memory))
    for index, block in enumerate(maps):
        soft = neighbours.recall(block, memory, search, nearest, settings.temperature)
        cells = torch.from_numpy(soft).to(work.device).view(*maps.grid(index), -1)
        yield [(0, cells.permute(2, 0, 1)[None])]


# --- the memory --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filled:
    """cells: of all maps of the train split, of which `blank` have no label. pictures: of the split."""

    memory: Memory
    cells: int
    blank: int
    pictures: int


def _fill(work: Work, settings: HummingbirdSettings, seed: int) -> _Filled:
    maps = work.maps("train")
    cells = [math.prod(maps.grid(index)) for index in range(len(maps.names))]
    taken = neighbours.shares(np.array(cells), places(settings, maps.channels, work.classes))
    vectors = np.empty((int(taken.sum()), maps.channels), np.float32)
    labels = np.empty((len(vectors), work.classes), np.float32)
    void = work.background if settings.void == "background" else None
    end = blank = 0
    for index, (block, counted) in enumerate(zip(maps, work.labels("train"), strict=True)):
        cell, label, pixels = counted
        soft = neighbours.soft_labels(cell, label, pixels, cells=cells[index], classes=work.classes, void=void)
        kept = neighbours.draw(soft, int(taken[index]), settings.sampling, generator(_SAMPLING, seed, index))
        part = slice(end, end + len(kept))
        vectors[part], labels[part] = normalize_l2(block[kept]), soft[kept]
        end += len(kept)
        blank += cells[index] - int(soft.any(1).sum())
    return _Filled(Memory(vectors[:end], labels[:end]), sum(cells), blank, len(cells))


def _size(settings: HummingbirdSettings, filled: _Filled) -> str:
    """What the score depends on, for the reader of the table."""
    found = len(filled.memory)
    sampled = "" if found == filled.cells - filled.blank else f", {settings.sampling}"
    blank = f", {filled.blank:,} have no label" if filled.blank else ""
    return (
        f"memory: {found:,} of {filled.cells:,} cells of {filled.pictures:,} train pictures "
        f"({size_text(filled.memory.nbytes)}{sampled}{blank})"
    )


def _reservations(work: Work, settings: HummingbirdSettings, memory: Memory) -> list[str]:
    notes = []
    if settings.neighbours > len(memory):
        notes.append(f"{settings.neighbours} neighbours were asked for; the memory has {len(memory)}, which are taken")
    held = np.flatnonzero(memory.labels.any(0))
    absent = [name for index, name in enumerate(work.class_names) if index not in held]
    if absent:
        notes.append(f"no cell of the memory has the class {', '.join(absent)}: it is never predicted")
    return notes
