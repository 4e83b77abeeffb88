from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.adapters import colour, noise, oracle
from bench.contracts import Adapter
from bench.errors import MismatchError
from bench.records import AdapterRequest, Checkpoint

NONE = Checkpoint(name="none", kind="none")


def build(module, classes: int = 0, **options) -> Adapter:
    card = module.CARD
    adapter = module.build(AdapterRequest(card=card, checkpoint=NONE, options=card.options(**options), classes=classes))
    assert isinstance(adapter, Adapter)
    assert tuple(adapter.taps) == card.taps
    assert adapter.default_tap == card.default_tap
    assert not card.trainable
    return adapter


def pictures(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))


def label_map(oracle_adapter: Adapter, labels: list[list[list[int]]]) -> torch.Tensor:
    values = torch.tensor(labels, dtype=torch.uint8)
    return oracle_adapter(torch.zeros(len(values), 3, 4, 4), ["labels"], labels=values)["labels"]


def test_oracle_is_one_hot_at_the_labels_own_size():
    adapter = build(oracle, classes=3)
    seen = label_map(adapter, [[[0, 1, 2], [2, 2, 0]]])
    assert adapter.needs_labels
    assert adapter.taps["labels"].frame == "label"
    assert seen.shape == (1, 3, 2, 3)
    assert seen.sum(1).unique().tolist() == [1]
    assert seen.argmax(1).tolist() == [[[0, 1, 2], [2, 2, 0]]]


def test_void_takes_the_nearest_label_and_all_void_gives_zeros():
    seen = label_map(build(oracle, classes=3), [[[1, 255, 255, 255, 2]], [[255] * 5]])
    columns = seen[0].argmax(0)[0].tolist()
    assert columns[:2] == [1, 1]
    assert columns[3:] == [2, 2]
    assert seen[0].sum(0).unique().tolist() == [1]
    assert seen[1].abs().sum() == 0


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, (9, 11)).astype(np.uint8)
    labels[rng.random((9, 11)) < 0.7] = 255
    seen = label_map(build(oracle, classes=4), labels[None].tolist())[0].argmax(0).numpy()
    rows, columns = np.nonzero(labels != 255)
    for y, x in np.ndindex(labels.shape):
        distance = (rows - y) ** 2 + (columns - x) ** 2
        assert seen[y, x] in labels[rows, columns][distance == distance.min()]


def test_oracle_refuses_what_it_cannot_use():
    adapter = build(oracle, classes=2)
    with pytest.raises(MismatchError, match="no labels"):
        adapter(torch.zeros(1, 3, 4, 4), ["labels"])
    with pytest.raises(MismatchError, match="a label is 7; expected 0 … 1"):
        label_map(adapter, [[[0, 7, 255]]])
    with pytest.raises(MismatchError, match="tap 'x'"):
        adapter(torch.zeros(1, 3, 4, 4), ["x"], labels=torch.zeros(1, 4, 4, dtype=torch.uint8))


def test_noise_depends_on_seed_and_content_alone():
    adapter = build(noise)
    batch = adapter.preprocess(pictures(3))
    together = adapter(batch, ["noise"])["noise"]
    assert together.shape == (3, 32, 2, 3)
    alone = torch.cat([adapter(batch[i : i + 1], ["noise"])["noise"] for i in (2, 0, 1)])[[1, 2, 0]]
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(build(noise, seed=1)(batch, ["noise"])["noise"], together)
    changed = batch.clone()
    changed[0, 0, 0, 0] = 255 - changed[0, 0, 0, 0]
    assert not torch.equal(adapter(changed, ["noise"])["noise"][0], together[0])


def test_noise_is_standard_normal_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    values = build(noise, width=64, stride=1)(torch.zeros(1, 3, 40, 40), ["noise"])["noise"]
    assert torch.equal(torch.rand(3), wanted)
    n = values.numel()
    assert abs(values.mean()) < 5 / n**0.5
    assert abs(values.var() - 1) < 5 * (2 / n) ** 0.5


def test_options_are_part_of_the_fingerprint():
    prints = [build(noise, **o).fingerprint for o in ({}, {"seed": 1}, {"width": 8}, {"stride": 4})]
    assert len(set(prints)) == 4
    assert build(colour).fingerprint != build(colour, stride=4).fingerprint


def test_colour_is_the_mean_of_each_cell():
    adapter = build(colour, stride=4)
    given = pictures()
    seen = adapter(adapter.preprocess(given), ["colour"])["colour"].numpy()
    wanted = given.numpy().astype(float).reshape(2, 3, 4, 4, 6, 4).mean((3, 5)) / 255
    assert adapter.pad_to == 4
    np.testing.assert_allclose(seen, wanted, atol=1e-6)
