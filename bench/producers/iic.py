"""IIC: clusters of pixels that hold as much information as they can about those of near pixels in another view.

Ji et al., "Invariant Information Clustering for Unsupervised Image Classification and Segmentation", ICCV 2019,
arXiv 1807.06653. The values of `paper` are those of the authors' command for COCO-Stuff (their network 512); what the
figures for PASCAL VOC in arXiv 2102.06191 were made with is not stated there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.records import Preset, ProducerCard, Source
from bench.settings import setting

from ._settings import CropSettings, RunSettings, choices

__all__ = ["CARD", "IICSettings"]


@dataclass(frozen=True, kw_only=True)
class IICSettings:
    """Every choice of a training run; the defaults are those of the preset `paper`."""

    clusters: int = setting(0, "K of head B, the clusters that are scored; 0: the data set's classes", minimum=0)
    over: int = setting(3, "K of head A, which over-clusters, as a multiple of head B's", minimum=1)
    width: int = setting(64, "channels of the first convolution", minimum=1)
    split: str = setting("", "split to train on; empty: trainaug where there is one, else the data set's train split")
    batch: int = setting(60, "pictures a step, over all processes", minimum=1)
    reach: int = setting(10, "information is taken over shifts of up to so many pixels", minimum=0)
    shifts: Literal["uncollapsed", "collapsed"] = setting(
        "uncollapsed", "information at each shift, or once of the joint probability summed over them"
    )
    weight_a: float = setting(1.0, "λ of head A: weighs the entropy of the clusters, 1: mutual information", minimum=0)
    weight_b: float = setting(1.0, "λ of head B", minimum=0)
    lr: float = setting(1e-4, "learning rate of Adam at the start", minimum=0)
    power: float = setting(0.0, "of the polynomial decay of the learning rate; 0: none", minimum=0)
    epochs: int = setting(9600, "passes over the train set, by turns for head B and head A", minimum=1)
    steps: int = setting(0, "steps; 0: as many as the epochs have (also --steps)", minimum=0)
    augment: CropSettings = field(default_factory=CropSettings)
    run: RunSettings = field(default_factory=RunSettings)


_COMMAND = "examples/commands.txt, model 512"

PAPER = Preset(
    name="paper",
    version=1,
    summary="the released command for COCO-Stuff, with the data set's classes as clusters",
    choices={
        **choices(Source.SEED, "section 2: IIC's own strategy, its clusters matched with the classes", clusters=0),
        **choices(Source.OURS, "45 for 15 classes in the command for COCO-Stuff", over=3),
        **choices(
            Source.CODE,
            _COMMAND,
            batch=60,
            reach=10,
            shifts="uncollapsed",
            weight_a=1.0,
            weight_b=1.0,
            lr=1e-4,
            augment__size=128,
            augment__scale=0.33,
        ),
        **choices(Source.CODE, "archs/segmentation/net10a.py", width=64),
        **choices(Source.CODE, "the learning rate is not lowered in any command", power=0.0),
        **choices(
            Source.CODE,
            f"{_COMMAND}: 4800 rounds of both heads, an upper bound: the epoch of best accuracy was released",
            epochs=9600,
        ),
        **choices(
            Source.CODE,
            "defaults of segmentation_twohead.py",
            augment__brightness=0.4,
            augment__contrast=0.4,
            augment__saturation=0.4,
            augment__hue=0.125,
            augment__flip=0.5,
        ),
    },
)

SMALL = Preset(
    name="small",
    version=2,
    summary="a narrow trunk on small crops, minutes on a laptop: for small pictures such as those of `shapes`",
    choices={
        **choices(
            Source.OURS,
            "two settings tried on `shapes`, see results/pretexts.md; crop, steps and rate a first choice",
            width=16,
            batch=16,
            steps=400,
            lr=1e-3,
            power=0.9,
            reach=5,
            augment__size=64,
        ),
        **choices(Source.OURS, "pictures are small already", augment__scale=1.0),
        **choices(
            Source.OURS,
            "colours are changed more than in the released command, so that texture is what both views share",
            augment__brightness=0.8,
            augment__contrast=0.8,
            augment__saturation=1.0,
            augment__hue=0.5,
        ),
        **choices(
            Source.OURS,
            "as in the released command; weight_b=0.7 with reach=3 kept the background together but parted no texture",
            weight_a=1.0,
            weight_b=1.0,
        ),
        **choices(
            Source.OURS, "as in the released command", clusters=0, over=3, shifts="uncollapsed", augment__flip=0.5
        ),
    },
)

CARD = ProducerCard(
    name="iic",
    summary="IIC: clusters of near pixels with the largest mutual information, from pictures alone",
    run="bench.producers._iic:run",
    settings=IICSettings,
    presets=(SMALL, PAPER),
    paper="Invariant Information Clustering for Unsupervised Image Classification and Segmentation, ICCV 2019",
)
"""`small` comes first: it is what data sets without a preset of their own are trained with."""
