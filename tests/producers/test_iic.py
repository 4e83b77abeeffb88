"""IIC as a producer: presets, pairs of views, training runs, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import registry, weights
from bench.checkpoints import read_checkpoint
from bench.datasets import FolderDataset
from bench.producers._crops import UNSEEN, PictureList
from bench.producers._iic import PairSet, collate
from bench.producers._settings import CropSettings
from bench.producers.iic import CARD, IICSettings
from bench.records import AdapterRequest, Source

PRESETS = {preset.name: preset for preset in CARD.presets}
TINY = ("width=4", "batch=2", "reach=3", "augment.size=32", "run.log_every=2", "run.save_every=2", "run.keep=9")


def words(data: Path, output: Path, *more: object, steps: int = 8) -> list[object]:
    changes = [word for change in TINY for word in ("--set", change)]
    return ["train", "iic", "--dataset", data, "--output", output, "--device", "cpu", "--steps", steps, *changes, *more]


def held(folder: Path, step: int) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step}.pt")


def pictures_of(voc: Path, **crops: Any) -> PictureList:
    data = FolderDataset(voc)
    return PictureList(data, data.names("train"), CropSettings(**crops), seed=0)


# --- presets -----------------------------------------------------------------------------------------------


def test_the_paper_preset_holds_the_released_command():
    values = PRESETS["paper"].values()
    wanted = {
        "batch": 60, "reach": 10, "shifts": "uncollapsed", "weight_a": 1.0, "weight_b": 1.0, "lr": 1e-4, "width": 64,
        "over": 3, "clusters": 0, "augment.size": 128, "augment.scale": 0.33, "augment.hue": 0.125, "augment.flip": 0.5,
    }  # fmt: skip
    assert {key: values[key] for key in wanted} == wanted
    assert all(values[f"augment.{name}"] == 0.4 for name in ("brightness", "contrast", "saturation"))


@pytest.mark.parametrize("preset", CARD.presets, ids=lambda preset: preset.name)
def test_every_value_of_a_preset_is_a_setting_with_a_source(preset):
    known = {field.name for field in dataclasses.fields(IICSettings)}
    known |= {f"augment.{field.name}" for field in dataclasses.fields(CropSettings)}
    assert preset.choices.keys() <= known
    assert all(isinstance(choice.source, Source) and choice.note for choice in preset.choices.values())
    assert registry.card("producers", "iic") is CARD
    assert CARD.presets[0].name == "small"


# --- views -------------------------------------------------------------------------------------------------


def test_the_second_view_is_the_first_in_other_colours_perhaps_mirrored(voc):
    plain = {"size": 32, "scale": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    pairs = PairSet(pictures_of(voc, **plain))
    flips = set()
    for index in range(4):
        for epoch in range(6):
            first, second, flipped, _ = pairs((epoch, index))
            assert first.shape == (32, 32, 3)
            assert np.array_equal(first, second[:, ::-1] if flipped else second)
            flips.add(flipped)
    assert flips == {True, False}
    coloured = PairSet(pictures_of(voc, size=32, scale=1.0, flip=0))
    first, second, flipped, _ = coloured((0, 0))
    assert not flipped
    assert not np.array_equal(first, second)
    assert np.array_equal(first, coloured((0, 0))[0])
    assert not np.array_equal(first, coloured((1, 0))[0])


def test_crops_are_of_scaled_pictures_with_zeros_around_small_ones(voc):
    picture = FolderDataset(voc).picture("train1")
    assert picture.shape == (64, 48, 3)
    padded, side = pictures_of(voc, size=60, scale=1.0).read(1)
    assert (padded.shape, side) == ((64, 60, 3), 60)
    assert not padded[:, :6].any()
    assert np.array_equal(padded[:, 6:54], picture)
    assert pictures_of(voc, size=16, scale=0.5).read(1)[1] == 32
    whole, side = pictures_of(voc, size=16, scale="fit").read(1)
    assert (whole.shape, side) == ((64, 48, 3), 48)
    first, *_ = PairSet(pictures_of(voc, size=16, scale=0.5))((0, 1))
    assert first.shape == (16, 16, 3)


def test_heads_take_turns_by_epochs_and_unseen_pairs_have_chance_of_their_own(voc):
    pairs = PairSet(pictures_of(voc, size=32, scale=1.0))
    assert [collate([pairs((epoch, 0))]).head for epoch in range(3)] == ["head_B", "head_A", "head_B"]
    other = PairSet(dataclasses.replace(pictures_of(voc, size=32, scale=1.0), stream=UNSEEN))
    assert not np.array_equal(pairs((0, 0))[0], other((0, 0))[0])


# --- runs --------------------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(bench, voc, tmp_path):
    run = tmp_path / "run"
    status, out, err = bench(*words(voc, run))
    assert status == 0, err
    assert out.strip() == str(run)
    assert "9 clusters of head_A, 3 clusters of head_B" in err
    assert "4 pictures of the split train, 8 steps of 2 crops" in err
    assert "held-out pictures after 0 steps: information of head_B" in err
    assert "held-out pictures after 8 steps: information of head_B" in err
    assert f"score it: bench eval --method iic@{run} --protocol kmeans --dataset {voc}" in err
    record = json.loads((run / "record.json").read_text())
    assert record["architecture"] == {
        "network": "iic", "clusters": {"head_A": 9, "head_B": 3}, "width": 4, "sub_heads": 1,
    }  # fmt: skip
    assert record["course"] == {"steps": 8, "batch": 2, "steps_per_epoch": 2}
    assert record["data"]["pictures"] == 4
    status, out, err = bench("eval", "--json", "--method", f"iic@{run}", "--protocol", "kmeans", "--dataset", voc)
    assert status == 0, err
    (row,) = json.loads(out)
    assert (row["run"]["tap"], row["run"]["settings"]["clusters"]) == ("head_B", 3)


def test_each_head_is_trained_in_its_own_epochs(bench, voc, tmp_path):
    assert bench(*words(voc, tmp_path / "run"))[0] == 0
    states = [held(tmp_path / "run", step)["model"] for step in (2, 4, 6, 8)]
    for head, still in (("head_B", (0, 2)), ("head_A", (1,))):
        key = f"{head}.heads.0.0.weight"
        for index in range(3):
            assert torch.equal(states[index][key], states[index + 1][key]) == (index in still)
    assert not torch.equal(states[0]["trunk.features.0.weight"], states[1]["trunk.features.0.weight"])


def test_a_run_taken_up_again_gives_the_same_bits(voc, resumed):
    resumed(lambda output, *more: words(voc, output, *more), 4, 8)


def test_the_adapter_gives_the_maps_of_the_run(bench, voc, tmp_path):
    assert bench(*words(voc, tmp_path / "run", "--set", "clusters=5", "--precision", "bf16", steps=2))[0] == 0
    card = registry.card("methods", "iic")
    checkpoint = weights.resolve(card, str(tmp_path / "run"), weights_dir=tmp_path)
    adapter = registry.load(card.factory)(AdapterRequest(card=card, checkpoint=checkpoint, options=card.options()))
    assert {name: tap.channels for name, tap in adapter.taps.items()} == {"trunk": 32, "head_B": 5, "head_A": 15}
    assert all(torch.equal(value, adapter.body.state_dict()[key]) for key, value in
               held(tmp_path / "run", 2)["model"].items())  # fmt: skip


def test_figures_and_panels_are_in_tensorboard(bench, voc, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert bench(*words(voc, tmp_path / "run", "--set", "run.panel_every=4", steps=4))[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "information", "held_out/information of head_B"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("held_out/information of head_B")] == [0, 2, 4]
    (shown,) = events.Images("panel")
    assert (shown.step, shown.width, shown.height) == (4, 3 * 32, 2 * 32)


def test_information_rises_on_the_pictures_trained_on(bench, voc, tmp_path):
    status, _, err = bench(*words(voc, tmp_path / "run", "--set", "lr=0.003", steps=40))
    assert status == 0, err
    first, last = (
        float(line.partition("head_B ")[2].partition(",")[0]) for line in err.splitlines() if "held-out" in line
    )
    assert last > 5 * first


@pytest.mark.parametrize("unusual", ["grey", "transparent"], indirect=True)
def test_pictures_are_learnt_from_as_people_see_them(learnt_alike):
    learnt_alike(lambda *given: words(*given, steps=2))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--set", "augment.size=33"], "augment.size=33 does not fit: expected an even number"),
        (["--set", "reach=32"], "of at least 33, more than the reach of the shifts"),
        (["--masks", "clean"], "iic has no setting 'masks.name'"),
        (["--init", "random"], "iic has no setting 'init'"),
        (["--export", "reference"], "iic has none"),
        (["--set", "augment.scale=2"], "augment.scale=2 does not fit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(bench, voc, tmp_path, more, why):
    status, _, err = bench(*words(voc, tmp_path / "run"), *more)
    assert status == 2
    assert why in err.splitlines()[-1]
    assert "Traceback" not in err


def test_pictures_without_labels_need_a_number_of_clusters(bench, voc, tmp_path):
    pictures = voc / "JPEGImages"
    status, _, err = bench(*words(pictures, tmp_path / "run"))
    assert status == 2
    assert "the data set has no classes to say how many clusters there are: --set clusters=K" in err
    status, _, err = bench(*words(pictures, tmp_path / "run", "--set", "clusters=4", steps=2))
    assert status == 0, err
    assert "held-out" not in err
