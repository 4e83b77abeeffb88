"""Memory, search and attention against plain loops and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import cluster, neighbours
from bench.errors import MismatchError, SettingError
from bench.neighbours import Memory

RNG = np.random.default_rng(0)


def one_by_one(cells, places):
    """Each place goes to the picture that has the fewest so far and cells left."""
    taken = np.zeros(len(cells), int)
    for _ in range(places):
        open_ = [index for index in range(len(cells)) if taken[index] < cells[index]]
        if not open_:
            break
        taken[min(open_, key=lambda index: taken[index])] += 1
    return taken


@pytest.mark.parametrize("places", [0, 1, 3, 7, 20, 60, 1000])
def test_places_are_shared_as_evenly_as_pictures_allow(places):
    for _ in range(20):
        cells = RNG.integers(0, 15, RNG.integers(1, 9))
        taken = neighbours.shares(cells, places)
        assert taken.sum() == min(places, cells.sum())
        assert (taken <= cells).all()
        assert sorted(taken) == sorted(one_by_one(cells, places))


def test_fewer_places_than_pictures_are_spread_over_the_list():
    assert np.flatnonzero(neighbours.shares(np.full(100, 5), 4)).tolist() == [0, 25, 50, 75]


@pytest.mark.parametrize("void", [None, 1])
def test_soft_labels_are_histograms_of_pixels(void):
    label = RNG.integers(0, 4, (6, 6))  # 3 = void
    label[:2, :2] = 3
    cells = np.arange(9).reshape(3, 3).repeat(2, 0).repeat(2, 1)
    pairs, pixels = np.unique(np.stack([cells.ravel(), label.ravel()]), axis=1, return_counts=True)
    found = neighbours.soft_labels(pairs[0], pairs[1], pixels, cells=10, classes=3, void=void)
    wanted = np.zeros((10, 3))
    for cell in range(9):
        held = [void if value == 3 else value for value in label[cells == cell] if value != 3 or void is not None]
        for value in held:
            wanted[cell, value] += 1 / len(held)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    assert found[0].any() == (void is not None)
    assert not found[9].any()


def random_labels(cells=60, classes=5):
    labels = RNG.random((cells, classes)) * (RNG.random((cells, classes)) < 0.3)
    return (labels / np.maximum(labels.sum(1, keepdims=True), 1e-9)).astype(np.float32)


def test_a_balanced_draw_follows_the_rule():
    """Score: over the classes in a cell, how many cells of the picture hold each; times an even draw; the smallest."""
    labels = random_labels()
    labelled = [index for index in range(60) if labels[index].any()]
    assert len(labelled) < 60
    draws = np.random.default_rng(7).random(len(labelled))
    scores = {}
    for draw, index in zip(draws, labelled, strict=True):
        holds = [c for c in range(5) if labels[index, c] > 0]
        scores[index] = draw * sum(sum(labels[other, c] > 0 for other in labelled) for c in holds)
    wanted = sorted(sorted(labelled, key=scores.__getitem__)[:11])
    assert neighbours.draw(labels, 11, "balanced", np.random.default_rng(7)).tolist() == wanted


def test_rare_classes_are_favoured_and_not_otherwise():
    labels = np.zeros((100, 2), np.float32)
    labels[:90, 0] = labels[90:, 1] = 1
    rare = {
        sampling: np.mean(
            [(neighbours.draw(labels, 20, sampling, np.random.default_rng(s)) >= 90).sum() for s in range(99)]
        )
        for sampling in ("balanced", "uniform")
    }
    assert rare["uniform"] == pytest.approx(2, abs=0.5)
    assert rare["balanced"] > 8


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
def test_all_labelled_cells_are_taken_where_they_fit(sampling):
    labels = random_labels()
    labelled = np.flatnonzero(labels.any(1)).tolist()
    assert neighbours.draw(labels, len(labelled), sampling, np.random.default_rng(0)).tolist() == labelled
    assert neighbours.draw(labels, 0, sampling, np.random.default_rng(0)).tolist() == []


def unit(count, width, rng=RNG):
    return cluster.normalize_l2(rng.standard_normal((count, width)).astype(np.float32))


ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(name == "faiss" and not cluster.faiss_available(), reason="no faiss"))
    for name in neighbours.ENGINES
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("size", "k"), [(200, 30), (30, 30), (1, 1), (64, 7)])
def test_search_is_exact(engine, size, k, monkeypatch):
    monkeypatch.setitem(neighbours._SIMILARITIES, "cpu", 200)  # blocks that do not divide the memory
    vectors, queries = unit(size, 9), unit(13, 9)
    similarities, places = neighbours.ENGINES[engine](vectors, "cpu")(queries, k)
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    wanted = np.argsort(-products, axis=1)[:, :k]
    assert places.dtype == np.int64
    assert places.tolist() == wanted.tolist()
    np.testing.assert_allclose(similarities, np.take_along_axis(products, wanted, 1), atol=1e-6)


def brute_force(queries, memory, k, temperature):
    """In float64, from vectors of any length."""
    q, m = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (queries, memory.vectors)
    )
    out = np.zeros((len(q), memory.labels.shape[1]))
    for index, products in enumerate(q @ m.T):
        nearest = np.argsort(-products)[:k]
        weights = np.exp(products[nearest] / temperature)
        out[index] = weights @ memory.labels[nearest].astype(np.float64) / weights.sum()
    return out


def a_memory(size=150, width=8, classes=4):
    labels = RNG.random((size, classes)).astype(np.float32)
    return Memory(unit(size, width), labels / labels.sum(1, keepdims=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_recall_agrees_with_brute_force(engine, temperature):
    memory = a_memory()
    queries = 3 * RNG.standard_normal((40, 8)).astype(np.float32)
    search = neighbours.ENGINES[engine](memory.vectors, "cpu")
    found = neighbours.recall(queries, memory, search, 30, temperature)
    np.testing.assert_allclose(found, brute_force(queries, memory, 30, temperature), rtol=0, atol=1e-6)


def test_equal_vectors_are_searched_once_and_never_many_at_a_time(monkeypatch):
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    memory = a_memory()
    asked = []

    def search(queries, k):
        asked.append(len(queries))
        return neighbours.ENGINES["torch"](memory.vectors, "cpu")(queries, k)

    different = RNG.standard_normal((40, 8)).astype(np.float32)
    queries = different[RNG.integers(0, 40, 500)]
    found = neighbours.recall(queries, memory, search, 5, 0.1)
    assert sum(asked) == 40
    assert max(asked) == 16
    np.testing.assert_allclose(found, brute_force(queries, memory, 5, 0.1), rtol=0, atol=1e-6)


def test_attention_of_far_neighbours_does_not_overflow():
    labels = np.eye(2, dtype=np.float32)
    found = neighbours.attend(np.array([[1.0, -1.0]], np.float32), np.array([[0, 1]]), labels, 1e-6)
    assert found.tolist() == [[1.0, 0.0]]


def test_without_faiss_the_extras_are_named(monkeypatch):
    monkeypatch.setattr(cluster, "faiss_available", lambda: False)
    with pytest.raises(MismatchError, match=r"nearest neighbours need faiss: .*densebench\[cpu\].*densebench\[gpu\]"):
        neighbours.ENGINES["faiss"](unit(3, 2), "cpu")


def test_vectors_that_do_not_fit_on_the_device_are_refused(monkeypatch):
    def full(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(SettingError, match=r"GB of vectors do not fit on cuda:0.*engine=faiss"):
        neighbours.ENGINES["torch"](unit(3, 2), "cuda:0")


def test_a_machine_knows_its_memory():
    assert neighbours.room("cpu") > 1e8
