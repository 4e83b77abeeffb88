"""Co-Occurrence as a producer: presets, patches in fours, training runs, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry, weights
from bench.checkpoints import read_checkpoint
from bench.datasets import FolderDataset
from bench.errors import DatasetError
from bench.networks.iic import Trunk
from bench.producers._crops import PictureList
from bench.producers._patches import FourSet, collate, contrasts, cut, draw_four, pairs
from bench.producers._settings import CropSettings
from bench.producers.cooccurrence import CARD, CooccurrenceSettings
from bench.records import AdapterRequest, Source

PRESETS = {preset.name: preset for preset in CARD.presets}
TINY = (
    "width=4", "branch=8", "dropout=0.5", "side=10", "batch=2", "augment.size=48", "run.log_every=2",
    "run.save_every=2", "run.keep=9",
)  # fmt: skip
SIDE = 4


def words(data: Path, output: Path, *more: object, steps: int = 6) -> list[object]:
    changes = [word for change in TINY for word in ("--set", change)]
    base = ["train", "cooccurrence", "--dataset", data, "--output", output, "--device", "cpu", "--steps", steps]
    return [*base, *changes, *more]


def held(folder: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step}.pt")


# --- presets -----------------------------------------------------------------------------------------------


def test_the_paper_preset_is_the_stand_in():
    values = PRESETS["paper"].values()
    wanted = {"side": 11, "neighbours": "corner", "cut": "map", "width": 64, "branch": 1024, "augment.size": 128}
    assert {key: values[key] for key in wanted} == wanted
    assert PRESETS["paper"].choices["lr"].source is Source.OURS


@pytest.mark.parametrize("preset", CARD.presets, ids=lambda preset: preset.name)
def test_every_value_of_a_preset_is_a_setting_with_a_source(preset):
    known = {field.name for field in dataclasses.fields(CooccurrenceSettings)}
    known |= {f"augment.{field.name}" for field in dataclasses.fields(CropSettings)}
    assert preset.choices.keys() <= known
    assert all(isinstance(choice.source, Source) and choice.note for choice in preset.choices.values())
    assert registry.card("producers", "cooccurrence") is CARD
    assert CARD.presets[0].name == "small"


# --- patches -----------------------------------------------------------------------------------------------


def fours(neighbours: Any, count: int = 3000, places: int = 29) -> np.ndarray:
    fits = np.ones((places, places), bool)
    drawn = (draw_four(fits, SIDE, neighbours, np.random.default_rng(seed)) for seed in range(count))
    return np.stack([four for four in drawn if four is not None])


@pytest.mark.parametrize(("neighbours", "places"), [("corner", 4), ("all", 8)])
def test_neighbours_touch_and_others_lie_far_apart(neighbours, places):
    found = fours(neighbours)
    assert len(found) == 3000
    assert found.min() == 0
    assert found.max() == 28
    for one, other in ((0, 1), (2, 3)):
        steps = found[:, other] - found[:, one]
        assert set(np.abs(steps).ravel()) <= {0, SIDE}
        assert len(np.unique(steps, axis=0)) == places
    for one, other in ((0, 3), (2, 1)):
        assert np.linalg.norm(found[:, other] - found[:, one], axis=1).min() >= 2 * SIDE


def test_both_kinds_are_drawn_from_the_same_distribution_of_positions():
    found = fours("all")
    first, second, kinds = pairs(torch.from_numpy(found))
    for patches in (first, second):
        of_kind = [patches[kinds == kind].numpy() for kind in (True, False)]
        assert len(of_kind[0]) == len(of_kind[1])
        assert all(np.array_equal(*(np.sort(one[:, axis]) for one in of_kind)) for axis in (0, 1))
    # and so is a single pair of either kind: b' is distributed as a' is
    counts = [np.histogram(found[:, place, 0], bins=7, range=(0, 29))[0] for place in range(4)]
    assert np.abs(np.diff(np.stack(counts), axis=0)).max() < 5 * np.sqrt(3000 / 7)


def test_only_patches_that_fit_are_taken():
    fits = np.zeros((29, 29), bool)
    fits[:, :9] = True
    found = [draw_four(fits, SIDE, "all", np.random.default_rng(seed)) for seed in range(50)]
    assert all(four is not None and four[:, 1].max() < 9 for four in found)
    assert draw_four(np.zeros((29, 29), bool), SIDE, "all", np.random.default_rng(0)) is None
    assert draw_four(np.ones((5, 5), bool), SIDE, "all", np.random.default_rng(0)) is None


def test_contrast_is_the_standard_deviation_of_grey():
    crop = np.random.default_rng(0).integers(0, 256, (11, 9, 3), np.uint8)
    seen = contrasts(crop, SIDE)
    grey = crop.astype(float).mean(2)
    wanted = [[grey[y : y + SIDE, x : x + SIDE].std() for x in range(6)] for y in range(8)]
    assert np.allclose(seen, wanted)
    assert not contrasts(np.full((9, 9, 3), 200, np.uint8), SIDE).any()


def test_patches_are_cut_at_their_corners_and_paired():
    maps = torch.rand(2, 3, 20, 24)
    corners = torch.from_numpy(np.random.default_rng(0).integers(0, 17, (2, 4, 2)))
    seen = cut(maps, corners, SIDE)
    for picture, place in np.ndindex(2, 4):
        top, left = corners[picture, place]
        assert torch.equal(seen[picture, place], maps[picture, :, top : top + SIDE, left : left + SIDE])
    first, second, kinds = pairs(seen)
    assert kinds.tolist() == [True, True, False, False] * 2
    for index, (one, other) in enumerate(((0, 1), (2, 3), (0, 3), (2, 1))):
        assert torch.equal(first[4 + index], seen[1, one])
        assert torch.equal(second[4 + index], seen[1, other])


def four_set(voc: Path, contrast: float = 8.0) -> FourSet:
    data = FolderDataset(voc)
    pictures = PictureList(data, data.names("train"), CropSettings(size=40, scale="fit"), seed=0)
    return FourSet(pictures, side=10, neighbours="all", contrast=contrast)


def test_samples_are_a_function_of_their_key(voc):
    make = four_set(voc)
    (crop, corners), again = make((3, 1)), make((3, 1))
    assert crop.shape == (40, 40, 3)
    assert np.array_equal(crop, again[0])
    assert np.array_equal(corners, again[1])
    assert not np.array_equal(make((4, 1))[1], corners)
    assert all(contrasts(crop, 10)[tuple(corner)] >= 8 for corner in corners)
    batch = collate([make((0, index)) for index in range(2)])
    assert (batch.crops.shape, batch.corners.shape) == ((2, 3, 40, 40), (2, 4, 2))


def test_a_uniform_picture_gives_way_to_another_and_a_uniform_set_is_an_error(voc):
    names = FolderDataset(voc).names("train")
    for name in names[:-1]:
        Image.new("RGB", (48, 64), (90, 90, 90)).save(voc / "JPEGImages" / f"{name}.jpg")
    assert four_set(voc)((0, 0))[0].std() > 10
    with pytest.raises(DatasetError, match=r"held no four patches of 10 pixels with a contrast of 200.*contrast=…"):
        four_set(voc, contrast=200)((0, 0))


# --- runs --------------------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(bench, voc, tmp_path):
    run = tmp_path / "run"
    status, _, err = bench(*words(voc, run, "--set", "run.panel_every=2"))
    assert status == 0, err
    assert "held-out pictures after 0 steps: accuracy 0." in err
    assert "held-out pictures after 6 steps: accuracy 0." in err
    record = json.loads((run / "record.json").read_text())
    assert record["architecture"] == {
        "network": "cooccurrence", "side": 10, "width": 4, "branch": 8, "dropout": 0.5,
    }  # fmt: skip
    status, out, err = bench(
        "eval", "--json", "--seeds", 1, "--method", f"cooccurrence@{run}", "--protocol", "kmeans", "--dataset", voc
    )
    assert status == 0, err
    (row,) = json.loads(out)
    assert (row["run"]["tap"], row["run"]["settings"]["clusters"]) == ("trunk", 3)


@pytest.mark.parametrize("where", ["map", "picture"])
def test_a_run_taken_up_again_gives_the_same_bits(voc, resumed, where):
    chosen = ("--set", f"cut={where}", "--set", "neighbours=corner")
    straight = resumed(lambda output, *more: words(voc, output, *chosen, *more), 2, 6)
    early, last = (held(straight, step)["model"]["features.features.0.weight"] for step in (2, 6))
    assert not torch.equal(early, last)


def test_the_adapter_takes_the_trunk_of_the_run(bench, voc, tmp_path):
    assert bench(*words(voc, tmp_path / "run", "--precision", "bf16", steps=2))[0] == 0
    card = registry.card("methods", "cooccurrence")
    checkpoint = weights.resolve(card, str(tmp_path / "run"), weights_dir=tmp_path)
    adapter = registry.load(card.factory)(AdapterRequest(card=card, checkpoint=checkpoint, options=card.options()))
    assert isinstance(adapter.body, Trunk)
    state = held(tmp_path / "run", 2)["model"]
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in adapter.body.state_dict().items())
    assert all(key.startswith("isola_head.") for key in adapter.account["outside"])


@pytest.mark.parametrize("unusual", ["grey", "cmyk"], indirect=True)
def test_pictures_are_learnt_from_as_people_see_them(learnt_alike):
    learnt_alike(lambda *given: words(*given, steps=2))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--set", "augment.size=38"], "expected an even number of at least 40, four times the side of a patch"),
        (["--set", "side=4"], "side=4 does not fit: expected at least 10"),
        (["--set", "contrast=120"], "held no four patches"),
        (["--set", "cut=crop"], "cut=crop does not fit: expected one of map, picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(bench, voc, tmp_path, more, why):
    status, _, err = bench(*words(voc, tmp_path / "run"), *more)
    assert status == 2
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err
