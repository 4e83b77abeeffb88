"""Equal vectors are gathered once, and every vector of the stream can be found again."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bench import distinct
from bench.distinct import Gatherer
from bench.errors import InternalError


def gather(blocks, transform=lambda rows: rows):
    gatherer = Gatherer(sum(map(len, blocks)), transform)
    for block in blocks:
        gatherer.add(block)
    return gatherer.result()


def test_one_hot_vectors_are_kept_once_each():
    rng = np.random.default_rng(0)
    blocks = [np.eye(5, dtype=np.float32)[rng.integers(0, k, 300)] for k in (2, 4, 5)]
    found = gather(blocks)
    assert len(found.vectors) == 5
    assert np.array_equal(found.vectors[found.index], np.concatenate(blocks))


def test_distinct_vectors_are_kept_in_order_without_an_index():
    blocks = [np.random.default_rng(seed).standard_normal((50, 3)).astype(np.float32) for seed in range(3)]
    found = gather(blocks)
    assert found.index is None
    assert np.array_equal(found.vectors, np.concatenate(blocks))


@pytest.mark.parametrize("repeat", [False, True])
def test_the_transform_is_applied(repeat):
    block = np.arange(40, dtype=np.float32).reshape(20, 2)
    blocks = [np.repeat(block, 5, 0) if repeat else block] * 2
    found = gather(blocks, lambda rows: rows[:, :1] * 2)
    whole = found.vectors if found.index is None else found.vectors[found.index]
    assert np.array_equal(whole, np.concatenate(blocks)[:, :1] * 2)
    assert (found.index is not None) == repeat


def test_a_stream_of_another_length_is_a_fault():
    gatherer = Gatherer(3, lambda rows: rows)
    gatherer.add(np.zeros((2, 1), np.float32))
    with pytest.raises(InternalError, match="2 vectors, 3 were promised"):
        gatherer.result()


def test_a_collision_is_noticed(monkeypatch):
    monkeypatch.setattr(distinct, "_hash", lambda block: np.zeros(len(block), np.uint64))
    with pytest.raises(InternalError, match="one hash"):
        gather([np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]])


def test_a_stream_that_stops_repeating_goes_on_one_by_one():
    """A blank first picture must not make the real ones be kept at full width."""
    rng = np.random.default_rng(0)
    blocks = [np.zeros((500, 8), np.float32)] + [rng.standard_normal((500, 8)).astype(np.float32) for _ in range(5)]
    found = gather(blocks, lambda rows: rows[:, :2])
    assert found.index is None
    assert np.array_equal(found.vectors, np.concatenate(blocks)[:, :2])


def test_many_distinct_vectors_that_each_repeat_a_little_go_on_one_by_one(monkeypatch):
    monkeypatch.setattr(distinct, "_FEW", 10)
    blocks = [np.repeat(np.arange(20 * k, 20 * k + 20, dtype=np.float32)[:, None], 3, 0) for k in range(6)]
    found = gather(blocks)
    assert found.index is None
    assert np.array_equal(found.vectors, np.concatenate(blocks))


@pytest.mark.parametrize(("distinct_vectors", "dtype"), [(200, np.uint8), (256, np.uint8), (300, np.uint16)])
def test_an_index_takes_no_more_bytes_than_its_vectors_need(distinct_vectors, dtype):
    rng = np.random.default_rng(0)
    known = np.arange(2 * distinct_vectors, dtype=np.float32).reshape(-1, 2)
    wanted = [rng.permutation(np.repeat(np.arange(k), 6)) for k in (2, 100, distinct_vectors)]
    found = gather([known[index] for index in wanted])
    assert found.index.dtype == dtype
    assert np.array_equal(found.vectors[found.index], known[np.concatenate(wanted)])


def test_multiplicities_and_spreading_out_in_parts(monkeypatch):
    monkeypatch.setattr(distinct, "_PART", 7)
    index = np.random.default_rng(0).integers(0, 5, 50).astype(np.uint8)
    assert distinct.multiplicities(index, 6).tolist() == np.bincount(index, minlength=6).tolist()
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert np.array_equal(distinct.spread_out(values, index), values[index])


def test_one_byte_is_held_for_each_vector_of_labels():
    """Of 2 million vectors that are labels: 2 MB of index, and little for a moment while it is made and read."""
    labels = np.random.default_rng(0).integers(0, 21, 1 << 14)
    block = np.eye(21, dtype=np.float32)[labels]
    number = 128 * len(block)
    tracemalloc.start()
    gatherer = Gatherer(number, lambda rows: rows)
    for _ in range(128):
        gatherer.add(block)
    found = gatherer.result()
    weights = distinct.multiplicities(found.index, 21)
    spread = distinct.spread_out(np.arange(21, dtype=np.uint8), found.index)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weights.sum() == len(spread) == number
    assert held < 2.2 * number
    assert peak < 8 * number + 4 * block.nbytes + (16 << 20)
