"""The fakes that authors of plugins test with keep the contract that the real ones keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.testing import MemorySplit, MemoryWork

CLASSES, SIZES, EXTENTS = 4, [(15, 20), (10, 25)], [(22, 22), (8, 18)]


def example() -> tuple[MemoryWork, list[torch.Tensor]]:
    """Two pictures that a network saw at other sizes, and two heads' scores for them (heads, C, h, w)."""
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, CLASSES, size, np.uint8) for size in SIZES]
    for label in labels:
        label[rng.random(label.shape) < 0.1] = 255
    split = MemorySplit(maps=[rng.normal(size=(5, 5, 3)) for _ in labels], labels=labels, extents=EXTENTS)
    return MemoryWork(split, classes=CLASSES), [torch.from_numpy(rng.normal(size=(2, CLASSES, 5, 5))) for _ in labels]


def decided(logits: torch.Tensor, first: tuple[int, int], then: tuple[int, int]) -> np.ndarray:
    """Bilinear to `first`, the largest, nearest to `then`: (heads, H, W)."""
    classes = functional.interpolate(logits, first, mode="bilinear", align_corners=False).argmax(1)
    return functional.interpolate(classes[None].double(), then, mode="nearest-exact")[0].long().numpy()


@pytest.mark.parametrize("at", ["label", "input"])
def test_classes_are_decided_where_the_protocol_says(at):
    work, logits = example()
    wanted = [
        decided(each, extent if at == "input" else size, size)
        for each, extent, size in zip(logits, EXTENTS, SIZES, strict=True)
    ]
    scores = [[(0, each)] for each in logits]
    for found, heads in zip(work.paint_scores(work.maps(), scores, at=at), wanted, strict=True):
        assert np.array_equal(found, heads[0])
    for head, predicted in enumerate(work.count_scores(work.maps(), scores, at=at)):
        tables = predicted.counts.dense()
        for index, label in enumerate(work.splits["eval"].labels):
            assert np.array_equal(predicted.maps[index], wanted[index][head])
            for cluster, class_ in np.ndindex(CLASSES, CLASSES):
                assert tables[index, cluster, class_] == np.sum((wanted[index][head] == cluster) & (label == class_))


def test_the_two_places_differ_unless_the_network_saw_the_pictures_at_their_own_size():
    work, logits = example()
    scores = [[(0, each)] for each in logits]
    apart = [
        np.mean(first != second)
        for first, second in zip(
            *(work.paint_scores(work.maps(), scores, at=at) for at in ("label", "input")), strict=True
        )
    ]
    assert min(apart) > 0.01
    same = MemoryWork(MemorySplit(maps=work.maps().arrays, labels=work.splits["eval"].labels), classes=CLASSES)
    for first, second in zip(
        *(same.paint_scores(same.maps(), scores, at=at) for at in ("label", "input")), strict=True
    ):
        assert np.array_equal(first, second)


def test_parts_keep_the_sizes_that_the_network_saw():
    work, logits = example()
    whole = list(work.paint_scores(work.maps(), [[(0, each)] for each in logits], at="input"))[1]
    second = work.part([1])
    (part,) = second.paint_scores(second.maps(), [[(0, logits[1])]], at="input")
    assert np.array_equal(part, whole)
    held = work.part([1])
    (alone,) = held.paint_scores(held.maps(), [[(0, logits[1])]], at="input")
    assert np.array_equal(alone, whole)
