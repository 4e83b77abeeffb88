"""Co-Occurrence: whether two patches of a picture are neighbours.

Isola et al., "Learning Visual Groups from Co-Occurrences in Space and Time", 2015, arXiv 1511.06811, in the form that
IIC's authors gave it (Ji et al., arXiv 1807.06653): of the original neither code nor weights are public. How patches
are drawn is ours, see `bench.producers._patches`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.records import Preset, ProducerCard, Source
from bench.settings import setting

from ._settings import CropSettings, RunSettings, choices

__all__ = ["CARD", "CooccurrenceSettings"]


@dataclass(frozen=True, kw_only=True)
class CooccurrenceSettings:
    """Every choice of a training run; the defaults are those of the preset `paper`."""

    side: int = setting(11, "side of a patch in pixels of the crop", minimum=10)
    neighbours: Literal["corner", "all"] = setting(
        "corner", "which places around a patch are its neighbours': the four that share a corner, or all eight"
    )
    contrast: float = setting(
        8.0, "patches whose grey (0 to 255) has a standard deviation below this are not taken", minimum=0
    )
    cut: Literal["map", "picture"] = setting(
        "map", "patches are cut out of the trunk's map of the whole crop, or out of the crop, seen one by one"
    )
    width: int = setting(64, "channels of the first convolution", minimum=1)
    branch: int = setting(1024, "channels that a patch is brought to, and width of the layer that joins two", minimum=1)
    dropout: float = setting(0.5, "probability of dropout after that layer", minimum=0, maximum=1)
    split: str = setting("", "split to train on; empty: trainaug where there is one, else the data set's train split")
    batch: int = setting(60, "crops a step, over all processes; each gives two pairs of either kind", minimum=1)
    lr: float = setting(1e-4, "learning rate of Adam at the start", minimum=0)
    power: float = setting(0.0, "of the polynomial decay of the learning rate; 0: none", minimum=0)
    epochs: int = setting(3200, "passes over the train set", minimum=1)
    steps: int = setting(0, "steps; 0: as many as the epochs have (also --steps)", minimum=0)
    augment: CropSettings = field(default_factory=CropSettings)
    run: RunSettings = field(default_factory=RunSettings)


_COLOURS = {"augment__brightness": 0.4, "augment__contrast": 0.4, "augment__saturation": 0.4, "augment__hue": 0.125}

PAPER = Preset(
    name="paper",
    version=1,
    summary="the stand-in of IIC's authors: patches of 11 pixels of the map of a crop of 128",
    choices={
        **choices(Source.CODE, "archs/segmentation/baselines/net10a_isola.py", width=64, branch=1024, dropout=0.5),
        **choices(Source.CODE, "patches are cut out of the resized map", cut="map"),
        **choices(
            Source.CODE,
            "defaults of scripts/segmentation/baselines/isola.py",
            side=11,
            epochs=3200,
            augment__flip=0.5,
            **_COLOURS,
        ),
        **choices(Source.CODE, "utils/segmentation/baselines/isola_utils.py", neighbours="corner"),
        **choices(Source.OURS, "the command is not known; as for IIC", batch=60, lr=1e-4, power=0.0),
        **choices(Source.OURS, "the command is not known; as for IIC", augment__size=128, augment__scale=0.33),
        **choices(Source.OURS, "uniform patches give nothing to tell", contrast=8.0),
    },
)

_COLOURS_KEPT = dict.fromkeys(_COLOURS, 0.0)

SMALL = Preset(
    name="small",
    version=2,
    summary="a narrow trunk that sees each patch alone, minutes on a laptop",
    choices={
        **choices(
            Source.OURS,
            "by a few trials on `shapes`, one seed each, see results/pretexts.md",
            side=16,
            neighbours="all",
            width=16,
            branch=32,
            batch=32,
            steps=1800,
            lr=1e-3,
            power=0.9,
            augment__size=64,
        ),
        **choices(Source.OURS, "a crop is as high or as wide as its picture", augment__scale="fit"),
        **choices(Source.OURS, "the trunk sees nothing of what lies between two patches", cut="picture"),
        **choices(Source.OURS, "uniform patches give nothing to tell", contrast=8.0),
        **choices(Source.OURS, "on `shapes` it knows training pairs no better than others", dropout=0.0),
        **choices(Source.OURS, "hand-made differences tell less where colours are changed", **_COLOURS_KEPT),
        **choices(Source.OURS, "as in the stand-in", augment__flip=0.5),
    },
)

CARD = ProducerCard(
    name="cooccurrence",
    summary="Co-Occurrence: neighbouring patches told from others, in a stand-in network, from pictures alone",
    run="bench.producers._cooccurrence:run",
    settings=CooccurrenceSettings,
    presets=(SMALL, PAPER),
    paper="Learning Visual Groups from Co-Occurrences in Space and Time, 2015, arXiv 1511.06811",
)
"""`small` comes first: it is what data sets without a preset of their own are trained with."""
