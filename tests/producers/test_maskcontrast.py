"""MaskContrast as a producer: its presets, its pairs of views, and its record of the data."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry
from bench.augment import Augmentation
from bench.batches import Batches, batch_size
from bench.datasets import FolderDataset
from bench.errors import CheckpointError, DatasetError, DownloadError, SettingError
from bench.networks.maskcontrast import MaskContrastNetwork
from bench.panels import colours_of, panel
from bench.produce import init_body
from bench.producers._pairs import PairSet, Pictures, loader
from bench.producers.maskcontrast import CARD, MaskContrastSettings, MaskSettings
from bench.records import Source

PRESETS = {preset.name: preset for preset in CARD.presets}
SMALL_VIEWS = Augmentation(size=24)


@pytest.fixture
def dataset(voc) -> FolderDataset:
    """The small VOC folder (4 train pictures) with a mask of its objects for every picture, in the set `clean`."""
    (voc / "saliency_clean").mkdir()
    for label in sorted((voc / "SegmentationClass").glob("*.png")):
        ids = np.array(Image.open(label))
        write_mask(voc, label.stem, (ids == 1) | (ids == 2))
    return FolderDataset(voc)


def write_mask(root, name: str, mask: np.ndarray, mask_set: str = "clean") -> None:
    (root / f"saliency_{mask_set}").mkdir(exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(root / f"saliency_{mask_set}" / f"{name}.png")


def pairs_of(dataset: FolderDataset, seed: int = 0, **masks) -> PairSet:
    settings = MaskSettings(**masks)
    return PairSet(Pictures.find(dataset, "train", settings, seed), SMALL_VIEWS, settings, seed)


# --- presets -----------------------------------------------------------------------------------------------

TABLE = {
    "released-supervised-saliency": {
        "init": "supervised",
        "freeze": True,
        "batch": 64,
        "queue": 128,
        "epochs": 40,
        "class_weights": "enet",
        "saliency_loss": "balanced",
    },
    "released-unsupervised-saliency": {
        "init": "moco_v2",
        "freeze": False,
        "batch": 128,
        "queue": 256,
        "epochs": 40,
        "class_weights": "enet",
        "saliency_loss": "balanced",
    },
    "paper": {
        "init": "moco_v2",
        "freeze": False,
        "batch": 64,
        "queue": 128,
        "epochs": 60,
        "class_weights": "none",
        "saliency_loss": "plain",
    },
    "small": {
        "arch": "small",
        "lr": 3e-3,
        "weight_decay": 1e-2,
        "temperature": 0.2,
        "key_momentum": 0.95,
        "queue": 64,
        "batch": 32,
        "steps": 480,
    },
}
COMMON = {
    "optimizer": "sgd",
    "lr": 0.004,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "temperature": 0.5,
    "key_momentum": 0.999,
    "dim": 32,
    "augment.size": 224,
    "augment.area": (0.2, 1.0),
    "augment.hue": 0.1,
}


@pytest.mark.parametrize("name", TABLE)
def test_presets_hold_the_published_values(name):
    values = PRESETS[name].values()
    expected = TABLE[name] if name == "small" else {**COMMON, **TABLE[name]}
    assert {key: values[key] for key in expected} == expected
    assert (values["negatives"] == "local") == name.startswith("released")


@pytest.mark.parametrize("preset", CARD.presets, ids=lambda preset: preset.name)
def test_every_value_of_a_preset_is_a_setting_with_a_source(preset):
    known = {field.name for field in dataclasses.fields(MaskContrastSettings)}
    for group in ("masks", "augment", "run"):
        known |= {f"{group}.{field.name}" for field in dataclasses.fields(getattr(MaskContrastSettings(), group))}
    assert preset.choices.keys() <= known
    assert all(isinstance(choice.source, Source) and choice.note for choice in preset.choices.values())


def test_the_card_is_registered_and_small_is_what_plain_data_sets_take():
    assert registry.card("producers", "maskcontrast") is CARD
    assert CARD.presets[0].name == "small"


# --- pairs -------------------------------------------------------------------------------------------------


def all_batches(pairs: PairSet, steps: range, workers: int, batch: int = 2):
    return list(loader(pairs, Batches(4, batch, 0), steps, workers=workers, pin=False))


def equal(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_depend_on_the_step_alone(dataset):
    pairs = pairs_of(dataset)
    whole = all_batches(pairs, range(6), workers=0)
    assert equal(all_batches(pairs, range(6), workers=2), whole)
    assert equal(all_batches(pairs, range(4, 6), workers=1), whole[4:])
    assert not equal(all_batches(pairs_of(dataset, seed=1), range(6), workers=0), whole)


def test_a_batch_is_pictures_and_masks_of_both_views(dataset):
    (batch,) = all_batches(pairs_of(dataset), range(1), workers=0)
    assert (batch.query.shape, batch.query.dtype) == ((2, 3, 24, 24), torch.uint8)
    assert (batch.key_mask.shape, batch.key_mask.dtype) == ((2, 24, 24), torch.bool)
    assert not torch.equal(batch.query, batch.key)


def test_an_epoch_shows_every_picture_once_in_its_own_order():
    batches = Batches(11, 3, seed=5)
    assert batches.per_epoch == 3
    epochs = [[index for step in range(3 * e, 3 * e + 3) for _, index in batches.keys(step)] for e in range(3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {epoch for epoch, _ in batches.keys(7)} == {2}


def test_both_masks_pass_the_area_rule(dataset):
    pairs = pairs_of(dataset, least=0.25, most=0.5)
    shares = [mask.mean() for epoch in range(10) for index in range(4) for mask in pairs.pair(epoch, index)[1::2]]
    assert 0.25 < min(shares) <= max(shares) < 0.5
    free = pairs_of(dataset)
    assert max(mask.mean() for epoch in range(10) for mask in free.pair(epoch, 0)[1::2]) > 0.5


def test_a_picture_that_never_passes_is_replaced_by_another(dataset, caplog):
    write_mask(dataset.root, "train0", np.zeros((59, 51), bool))
    with caplog.at_level(logging.INFO):
        pairs = pairs_of(dataset)
    assert "1 masks are empty or fill their picture" in caplog.text
    query, mask, _, _ = pairs.pair(0, 0)
    assert 0.01 < mask.mean() < 0.99
    assert query.shape == (24, 24, 3)


def test_masks_that_no_view_can_satisfy_are_an_error_and_not_a_hang(dataset):
    pairs = pairs_of(dataset, least=0.98, most=0.99)
    with pytest.raises(DatasetError, match=r"draws gave no pair .*masks\.least"):
        all_batches(pairs, range(1), workers=1)


# --- masks that are not as they should be ------------------------------------------------------------------


def test_pictures_without_a_mask_are_left_out_and_counted(dataset, caplog):
    (dataset.root / "saliency_clean" / "train2.png").unlink()
    with caplog.at_level(logging.INFO):
        pictures = Pictures.find(dataset, "train", MaskSettings(), 0)
    assert pictures.names == ("train0", "train1", "train3")
    assert (pictures.facts["without_mask"], pictures.facts["without_mask_first"]) == (1, ["train2"])
    assert "1 of 4 pictures have no mask" in caplog.text
    with pytest.raises(DatasetError, match=r"1 of 4 .*masks\.missing=skip"):
        Pictures.find(dataset, "train", MaskSettings(missing="error"), 0)


def test_no_mask_at_all(dataset):
    for file in (dataset.root / "saliency_clean").glob("train*.png"):
        file.unlink()
    with pytest.raises(DatasetError, match="4 of 4 pictures have no mask"):
        Pictures.find(dataset, "train", MaskSettings(), 0)


def test_masks_without_a_picture_are_counted(dataset):
    write_mask(dataset.root, "nobody", np.ones((5, 5), bool))
    assert Pictures.find(dataset, "train", MaskSettings(), 0).facts["masks_without_picture"] == 1


def test_masks_of_another_size_are_resized_with_one_warning_or_refused(dataset, caplog):
    for name in ("train0", "train1"):
        write_mask(dataset.root, name, np.eye(2, dtype=bool))
    with caplog.at_level(logging.WARNING):
        pictures = Pictures.find(dataset, "train", MaskSettings(), 0)
    assert [record.message for record in caplog.records if "another size" in record.message] == [
        "2 masks have another size than their picture and are resized by nearest neighbour, the first is "
        f"{dataset.mask_path('train0', 'clean')}"
    ]
    picture, mask = pictures.read(1)
    assert mask.shape == picture.shape[:2] == (64, 48)
    assert mask[:32, :24].all()
    assert not mask[32:, :24].any()
    with pytest.raises(DatasetError, match=r"2 masks have another size .*masks\.size=resize"):
        Pictures.find(dataset, "train", MaskSettings(size="error"), 0)


def test_every_mask_empty(dataset):
    for name in dataset.names("train"):
        write_mask(dataset.root, name, np.zeros(dataset.size(name), bool))
    with pytest.raises(DatasetError, match=r"all 4 masks .* are empty"):
        Pictures.find(dataset, "train", MaskSettings(), 0)


def test_which_set_is_taken(dataset):
    for mask_set in ("a", "b"):
        write_mask(dataset.root, "train0", np.eye(64, 48, dtype=bool), mask_set)
    opened = FolderDataset(dataset.root)
    assert Pictures.find(opened, "train", MaskSettings(), 0).mask_set == "clean"
    assert Pictures.find(opened, "train", MaskSettings(name="a"), 0).mask_set == "a"
    with pytest.raises(DatasetError, match="no mask set 'c', there are: a, b, clean"):
        Pictures.find(opened, "train", MaskSettings(name="c"), 0)
    for file in (dataset.root / "saliency_clean").iterdir():
        file.unlink()
    (dataset.root / "saliency_clean").rmdir()
    with pytest.raises(DatasetError, match="choose one with --masks"):
        Pictures.find(FolderDataset(dataset.root), "train", MaskSettings(), 0)


def test_shuffled_masks_are_those_of_other_pictures(dataset):
    pictures = Pictures.find(dataset, "train", MaskSettings(shuffle=True), 0)
    assert sorted(pictures.mask_names) == sorted(pictures.names)
    assert all(name != other for name, other in zip(pictures.names, pictures.mask_names, strict=True))


@pytest.mark.parametrize(
    ("wanted", "pictures", "processes", "batch"), [(32, 1000, 1, 32), (32, 18, 1, 18), (32, 18, 4, 16), (4, 4, 2, 4)]
)
def test_the_size_of_a_batch(wanted, pictures, processes, batch):
    assert batch_size(wanted, pictures, processes) == batch


@pytest.mark.parametrize(
    ("wanted", "pictures", "why"), [(1, 50, "smaller than"), (32, 1, "smaller than"), (7, 50, "divided")]
)
def test_batches_that_cannot_be_dealt_out(wanted, pictures, why):
    with pytest.raises(SettingError, match=why):
        batch_size(wanted, pictures, 2)


# --- weights to begin with, pictures of the run ------------------------------------------------------------


def test_the_body_begins_with_the_weights_of_a_method():
    body = MaskContrastNetwork("resnet18").backbone
    before = body.conv1.weight.clone()
    facts = init_body("timm:resnet18@random", body, seed=4)
    assert facts["spec"] == "timm:resnet18@random"
    assert not torch.equal(body.conv1.weight, before)
    again = MaskContrastNetwork("resnet18").backbone
    assert init_body("timm:resnet18@random", again, seed=4) == facts
    assert init_body("timm:resnet18@random", again, seed=5) != facts


@pytest.mark.parametrize(("spec", "why"), [("timm:resnet34@random", "arch="), ("colour", "has no weights")])
def test_a_body_that_does_not_fit_is_refused(spec, why):
    with pytest.raises(CheckpointError, match=why):
        init_body(spec, MaskContrastNetwork("resnet18").backbone, seed=0)


def test_weights_that_cannot_be_fetched_are_said_with_the_way_out(monkeypatch):
    def resolve(*arguments, **options):
        raise DownloadError("there is no network: fetch FILE by hand")

    monkeypatch.setattr("bench.weights.resolve", resolve)
    with pytest.raises(DownloadError, match="by hand; or begin without weights: --init random"):
        init_body("moco_v2", MaskContrastNetwork("resnet50").backbone, seed=0)


def test_random_leaves_the_body_as_it_is():
    body = MaskContrastNetwork("small").backbone
    before = {key: value.clone() for key, value in body.state_dict().items()}
    init_body("random", body, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


def test_equal_vectors_have_equal_colours_and_others_do_not():
    vectors = np.repeat(np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32), 5, axis=0)
    colours = colours_of(vectors)
    assert len(np.unique(colours, axis=0)) == 4
    assert (colours[::5] == colours[4::5]).all()


def test_a_panel_shows_one_row_per_picture():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    masks = np.zeros((2, 16, 16), bool)
    masks[1] = True
    saliency = np.zeros((2, 4, 4), np.float32)
    saliency[0, 0, 0] = 1
    shown = panel(pictures, masks, saliency, np.zeros((2, 4, 4, 5), np.float32))
    assert shown.shape == (32, 64, 3)
    assert (shown[:16, :16] == pictures[0]).all()
    assert (shown[16:, 16:32] == 255).all()
    assert (shown[:4, 32:36] == 255).all()
    assert not shown[4:16, 36:48].any()
