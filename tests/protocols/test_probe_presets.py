"""Presets of the linear probe that other papers and codes have, at the command line: their settings, at work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from bench import paths, registry
from bench.adapters import timm
from bench.protocols.linear import CARD
from bench.records import AdapterRequest
from bench.store import Store
from bench.weights import resolve

SIZE = 64


@pytest.fixture
def probe(bench, voc) -> Callable[..., dict[str, Any]]:
    """The row of a preset on a random ResNet-18, with some settings of its own."""

    def run(preset: str, *words: str, **changes: Any) -> dict[str, Any]:
        given = [word for key, value in changes.items() for word in ("--set", f"linear.{key}={value}")]
        status, out, err = bench(
            *("eval", "--method", "timm:resnet18@random", "--protocol", f"linear:{preset}", "--dataset", voc),
            *("--size", SIZE, "--json", *given, *words),
        )
        assert status == 0, err
        (row,) = json.loads(out)
        return row

    return run


def head_of(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a row's head."""
    store = Store(paths.results_root())
    (kept,) = (each for each in store.rows() if each.key == row["key"])
    arrays = {name: np.asarray(array) for name, array in store.arrays(kept).items()}
    return arrays["seed0_weight"], arrays["seed0_bias"]


WANTED = {
    "released-code": {"decide": "input", "border": "background", "grid": 0, "rotate": 5.0, "drop": "1/2"},
    "leopart": {"decide": "label", "area": [0.8, 1.0], "grid": 100, "rotate": 0.0, "drop": "2/2"},
}
"""What sets each apart from `paper`; the drop is that of two epochs."""


@pytest.mark.parametrize("preset", WANTED)
def test_a_preset_runs_as_it_is_written(probe, preset):
    row = probe(preset, epochs=2)
    settings = row["run"]["settings"]
    (written,) = (each.values() for each in CARD.presets if each.name == preset)
    written = {key: list(value) if isinstance(value, tuple) else value for key, value in written.items()}
    assert settings.items() >= (written | {"size": str(SIZE), "epochs": 2} | WANTED[preset]).items()
    assert (row["run"]["preset"], row["dropped"]) == (preset, 0)
    scores = row["per_seed"][0]["scores"]["as_predicted"]
    figures = [*scores["iou"], *(value for value in scores.values() if isinstance(value, float))]
    assert all(math.isfinite(figure) and 0 <= figure <= 1 for figure in figures)
    assert 0 < row["per_seed"][0]["best_on_val_miou"] <= 1
    assert all(np.isfinite(array).all() for array in head_of(row))


@pytest.mark.parametrize(
    ("preset", "key", "other"),
    [("released-code", "border", "void"), ("leopart", "area", "1,1"), ("leopart", "grid", 0)],
)
def test_what_sets_a_preset_apart_reaches_its_head(probe, preset, key, other):
    """The same seed and pictures: the head is another one where the setting is another."""
    own, changed = probe(preset, epochs=1), probe(preset, epochs=1, **{key: other})
    assert own["key"] != changed["key"]
    assert np.abs(head_of(own)[0] - head_of(changed)[0]).max() > 1e-6


def resnet_maps(picture: Path) -> torch.Tensor:
    """What the network gives for a picture at SIZE × SIZE, (1, D, h, w), by other means than the probe's."""
    checkpoint = resolve(timm.CARD, "random", weights_dir=Path(), seed=0, argument="resnet18")
    request = AdapterRequest(
        card=timm.CARD, checkpoint=checkpoint, argument="resnet18", options=timm.CARD.options(), classes=3
    )
    network = registry.load(timm.CARD.factory)(request).eval()
    image = Image.open(picture).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        return network(network.preprocess(pixels), ("last",))["last"]


def test_classes_of_the_released_code_are_decided_at_the_size_of_the_input(probe, voc):
    """The largest logit at 64 × 64, then the nearest pixel: not what is decided at the label's size."""
    row = probe("released-code", "--save-predictions", epochs=20, normalize="standardize", lr=0.01)
    weight, bias = (torch.from_numpy(array).double() for array in head_of(row))
    (saved,) = paths.results_root().glob(f"{row['key']}*-predictions")
    hits, valid, apart, classes = 0, 0, 0, set()
    for path in sorted(saved.glob("*.png")):
        painted = torch.from_numpy(np.array(Image.open(path)))
        label = torch.from_numpy(np.array(Image.open(voc / "SegmentationClass" / path.name)))
        assert painted.shape == label.shape
        maps = resnet_maps(voc / "JPEGImages" / f"{path.stem}.jpg").double()
        logits = functional.conv2d(maps, weight[..., None, None], bias)
        large = functional.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=False)
        wanted = functional.interpolate(large.argmax(1)[None].double(), label.shape, mode="nearest-exact")[0, 0]
        assert (wanted == painted).double().mean() > 0.999  # float32 there, float64 here
        direct = functional.interpolate(logits, label.shape, mode="bilinear", align_corners=False).argmax(1)[0]
        apart += int((direct != painted).sum())
        hits += int(((wanted == label) & (label != 255)).sum())
        valid += int((label != 255).sum())
        classes |= set(painted.unique().tolist())
    assert len(classes) > 1
    assert apart > 50
    assert abs(hits / valid - row["per_seed"][0]["scores"]["as_predicted"]["pixel_accuracy"]) < 0.001
