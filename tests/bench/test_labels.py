"""Labels by cell: counts are those of pixels, also where the cells are the pixels and are kept packed."""

from __future__ import annotations

import numpy as np
import pytest

from bench import registry
from bench.cache import Cache
from bench.datasets import open_dataset
from bench.features import Runtime, SplitMaps
from bench.labels import CellLabels, label_pixels
from bench.metrics import count_pixels
from bench.records import AdapterRequest, Checkpoint
from bench.settings import InputSettings


@pytest.fixture
def maps(voc, tmp_path):
    dataset = open_dataset(str(voc))
    card = registry.card("methods", "oracle")
    checkpoint = Checkpoint(name="none", kind="none")
    request = AdapterRequest(card=card, checkpoint=checkpoint, classes=len(dataset.classes))
    return SplitMaps(
        registry.load(card.factory)(request),
        dataset,
        dataset.names("val"),
        taps=("labels",),
        inputs=InputSettings(size="40x56"),
        runtime=Runtime(),
        cache=Cache(tmp_path / "cache"),
        record=None,
        cheap=True,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_cells_that_are_pixels_count_as_pixels_do(voc, maps, masked):
    dataset, rng = open_dataset(str(voc)), np.random.default_rng(0)
    assert maps.grids == maps.sizes
    masks = [rng.random(size) < 0.5 for size in maps.sizes]
    ids = [rng.integers(1, 5, size) for size in maps.sizes]
    labels = CellLabels.read(dataset, maps, maps.names, masks if masked else None)
    given = [np.append(one, 0) for one in ids] if masked else ids
    counts = labels.count(given, 5).dense()
    for index, name in enumerate(maps.names):
        label = dataset.label(name)
        painted = np.where(masks[index], ids[index], 0) if masked else ids[index]
        assert np.array_equal(counts[index], count_pixels(painted, label, 5, 3))
        cell, found, pixels = labels.pictures[index]
        again = label_pixels(*maps.cells(index), maps.grids[index], label, 3, masks[index] if masked else None)
        assert pixels.sum() == again[2].sum() == label.size
        if not masked:
            assert all(np.array_equal(one, other) for one, other in zip((cell, found, pixels), again, strict=True))


def test_labels_whose_cells_are_pixels_are_kept_packed(voc, maps):
    dataset = open_dataset(str(voc))
    labels = CellLabels.read(dataset, maps, maps.names)
    assert not isinstance(labels.pictures, tuple), "every pixel would be kept in six bytes"
    assert len(labels.pictures) == len(maps.names)
