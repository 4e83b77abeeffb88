"""Segment retrieval: the reference's figures, known answers, and what happens when there is nothing to retrieve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.contracts import Scope
from bench.errors import SettingError
from bench.metrics import evaluate_predictions
from bench.protocols import retrieval
from bench.settings import apply
from bench.testing import MemorySplit, MemoryWork, check_protocol

GOLDEN = Path(__file__).parents[1] / "golden"
CARD = retrieval.CARD


def settings(preset: str = "native", **changes: Any) -> retrieval.RetrievalSettings:
    values = next(p for p in CARD.presets if p.name == preset).values()
    found = apply(CARD.settings(), values | changes, CARD.name)
    assert isinstance(found, retrieval.RetrievalSettings)
    return found


def scores(work: MemoryWork, how: retrieval.RetrievalSettings) -> dict[str, Any]:
    outcome = retrieval.run(work, how, 0)
    assert outcome.matched is not None
    found = evaluate_predictions(
        outcome.counts, outcome.matched, background=work.background, seed=0, among=outcome.among
    )
    figures: dict[str, Any] = found["scores"]["as_predicted"]
    return figures


def test_it_keeps_the_contract():
    check_protocol(CARD)


def test_it_agrees_with_the_reference():
    golden = np.load(GOLDEN / "segment_retrieval.npz")
    wanted = json.loads((GOLDEN / "evaluation.json").read_text())["retrieval"]
    maps = golden["embeddings"].transpose(0, 2, 3, 1)

    def split(part: slice) -> MemorySplit:
        return MemorySplit(maps=maps[part], labels=golden["ground_truth"][part], logits=golden["saliency_logits"][part])

    work = MemoryWork(split(slice(20, 40)), classes=21, train=split(slice(20)))
    outcome = retrieval.run(work, settings("released-code"), 0)
    keys = outcome.shared["keys"] / np.linalg.norm(outcome.shared["keys"], axis=1, keepdims=True)
    np.testing.assert_allclose(keys, golden["bank_prototypes"], rtol=0, atol=1e-6)
    assert outcome.shared["key_labels"].tolist() == wanted["bank_labels"]
    found = scores(work, settings("released-code"))
    assert found["miou"] == pytest.approx(wanted["miou"], abs=1e-6)
    np.testing.assert_allclose(found["iou"], wanted["iou"], rtol=0, atol=1e-6)
    assert scores(work, settings("native"))["miou"] != pytest.approx(wanted["miou"], abs=1e-6)


def picture(label: int, ground: int = 0, side: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map, label and mask of one object that fills the middle."""
    mask = np.zeros((side, side), bool)
    mask[2:6, 2:6] = True
    labels = np.where(mask, label, ground).astype(np.uint8)
    return np.eye(30, dtype=np.float32)[labels], labels, mask


def split_of(*labels: int, ground: int = 0) -> MemorySplit:
    maps, label_maps, masks = zip(*(picture(label, ground) for label in labels), strict=True)
    return MemorySplit(maps=maps, labels=label_maps, masks=masks)


MASKS = {"foreground": "masks:true"}


def test_without_a_background_class_all_labels_count_and_the_rest_predicts_nothing():
    work = MemoryWork(split_of(0, 1, ground=2), classes=3, background=None, train=split_of(1, 0, 1, ground=2))
    outcome = retrieval.run(work, settings(**MASKS), 0)
    assert outcome.shared["key_labels"].tolist() == [1, 0, 1]
    found = scores(work, settings(**MASKS))
    assert found["iou"] == [1.0, 1.0, 0.0]
    assert found["match"] == [0, 1, 2, -1]
    assert found["pixel_accuracy"] == 16 / 64


def test_pictures_without_foreground_or_class_are_left_out_and_said():
    train = split_of(1, 2, 0)
    blank = MemorySplit(maps=train.maps, labels=train.labels, masks=[np.zeros((8, 8), bool), *(train.masks or ())[1:]])
    scored = split_of(2, 1)
    empty = MemorySplit(maps=scored.maps, labels=scored.labels, masks=[(scored.masks or ())[0], np.zeros((8, 8), bool)])
    work = MemoryWork(empty, classes=3, train=blank)
    outcome = retrieval.run(work, settings(**MASKS), 0)
    assert outcome.arrays["objects"].tolist() == [2, 0]
    assert outcome.facts == {"keys": 1.0, "queries": 1.0}
    assert "2 of 3 pictures of the train split are not in the memory: 1 without foreground, 1 without a class" in (
        " ".join(work.said)
    )
    assert "1 of 2 pictures have no foreground" in " ".join(outcome.notes)


def test_an_empty_memory_predicts_background():
    work = MemoryWork(split_of(1, 2), classes=3, train=split_of(0))
    assert scores(work, settings(**MASKS))["iou"] == [48 / 64, 0.0, 0.0]
    assert "the memory is empty" in " ".join(work.said)


VOC = ("background", "aeroplane", "bicycle", "bottle", "bus", "car", "cat", "cow", "person")


def test_seven_classes_leave_out_the_others_and_the_background():
    work = MemoryWork(split_of(1, 2, 3, 4), classes=9, train=split_of(2, 1, 3, 4), class_names=VOC)
    outcome = retrieval.run(work, settings(classes="seven", **MASKS), 0)
    assert outcome.shared["key_labels"].tolist() == [1, 3, 4]
    assert [VOC[index] for index in outcome.among] == list(retrieval.SEVEN)
    dense = outcome.counts.dense()
    assert dense[:, :, 2].sum() == 0
    assert dense[1, :, -1].sum() == 16
    found = scores(work, settings(classes="seven", **MASKS))
    assert found["miou"] == pytest.approx(3 / 7)
    assert found["miou_present"] == found["class_accuracy"] == 1.0
    assert scores(work, settings(**MASKS))["miou"] == pytest.approx(5 / 9)


def test_seven_classes_need_their_names():
    with pytest.raises(SettingError, match=r"classes=seven.*no aeroplane, .*person: take classes=all"):
        retrieval.run(MemoryWork(split_of(1), classes=3), settings(classes="seven", **MASKS), 0)


def test_the_row_says_which_list_fills_the_memory():
    (variant,) = retrieval.expand(settings(), Scope(classes=4, device="cpu", train=12, train_split="trainaug"))
    assert variant.notes == ("the memory is filled from the list 'trainaug' of 12 pictures",)
    summary = next(preset.summary for preset in CARD.presets if preset.name == "released-code")
    assert "from the list train of VOC" in summary
    assert "here the memory is the data set's own train split" in summary
