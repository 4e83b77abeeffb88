"""MaskContrast: pixels of a salient object are drawn to the object's other view and pushed from all other objects.

Van Gansbeke et al., "Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals", ICCV 2021,
arXiv 2102.06191. The values of `paper` follow the supplement's Algorithm 1 and, for what it leaves open, the main
paper; those of the two `released-…` presets the configurations of the authors' released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.augment import Augmentation
from bench.records import Preset, ProducerCard, Source
from bench.settings import setting

from ._settings import RunSettings, choices

__all__ = ["CARD", "MaskContrastSettings", "MaskSettings"]


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Which masks are learnt from, and what becomes of those that do not fit."""

    name: str = setting(
        "", "mask set, or a folder by its path; empty: `clean` where there is one, else the only one (also --masks)"
    )
    shuffle: bool = setting(False, "give every picture the mask of another one: a control, which should teach little")
    missing: Literal["skip", "error"] = setting("skip", "pictures without a mask")
    size: Literal["resize", "error"] = setting("resize", "masks of another size than their picture")
    least: float = setting(0.01, "views with no more foreground than this share are drawn anew", minimum=0, maximum=1)
    most: float = setting(0.99, "views with no less foreground than this share are drawn anew", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class MaskContrastSettings:
    """Every choice of a training run; the defaults are those of the preset `paper`."""

    arch: Literal["resnet18", "resnet34", "resnet50", "small"] = setting("resnet50", "body and decoder")
    dim: int = setting(32, "width of the embedding", minimum=1)
    init: str = setting("moco_v2", "weights of the body: METHOD[@CHECKPOINT] or random (also --init)")
    freeze: bool = setting(False, "keep conv1, bn1, layer1 and layer2 as they are")
    split: str = setting("", "split to train on; empty: trainaug where there is one, else the data set's train split")
    batch: int = setting(64, "pictures a step, over all processes", minimum=1)
    queue: int = setting(128, "former prototypes to tell pixels from; a multiple of the batch", minimum=1)
    temperature: float = setting(0.5, "divides the cosines", minimum=1e-3)
    key_momentum: float = setting(0.999, "m of the key network: k = m·k + (1 - m)·q", minimum=0, maximum=1)
    negatives: Literal["global", "local"] = setting("global", "several processes: one batch over all, or one of each")
    class_weights: Literal["enet", "none"] = setting("none", "weights of the contrastive loss by object size")
    saliency_loss: Literal["balanced", "plain"] = setting("plain", "class-balanced or plain binary cross entropy")
    resolution: Literal["input", "feature"] = setting("input", "losses at the pixels, or at the cells of the map")
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "optimizer")
    lr: float = setting(0.004, "learning rate at the start", minimum=0)
    momentum: float = setting(0.9, "momentum of sgd", minimum=0, maximum=1)
    weight_decay: float = setting(1e-4, "weight decay, of all parameters", minimum=0)
    power: float = setting(0.9, "of the polynomial decay of the learning rate", minimum=0)
    decay: Literal["step", "epoch"] = setting("epoch", "when the learning rate decays")
    warmup: int = setting(0, "steps in which the learning rate rises", minimum=0)
    epochs: int = setting(60, "passes over the train set", minimum=1)
    steps: int = setting(0, "steps; 0: as many as the epochs have (also --steps)", minimum=0)
    masks: MaskSettings = field(default_factory=MaskSettings)
    augment: Augmentation = field(default_factory=Augmentation)
    run: RunSettings = field(default_factory=RunSettings)


_AUGMENTATION = choices(
    Source.CODE,
    "pretrain/utils/common_config.py; drawn on its own for query and key",
    augment__size=224,
    augment__area=(0.2, 1.0),
    augment__ratio=(3 / 4, 4 / 3),
    augment__jitter=0.8,
    augment__brightness=0.4,
    augment__contrast=0.4,
    augment__saturation=0.4,
    augment__hue=0.1,
    augment__grey=0.2,
    augment__flip=0.5,
) | choices(Source.CODE, "pretrain/data/dataset.py; both views are drawn anew", masks__least=0.01, masks__most=0.99)

_RELEASED = {
    **choices(
        Source.CODE,
        "pretrain/configs",
        arch="resnet50",
        dim=32,
        temperature=0.5,
        key_momentum=0.999,
        resolution="input",
        optimizer="sgd",
        lr=0.004,
        momentum=0.9,
        weight_decay=1e-4,
        epochs=40,
    ),
    **choices(Source.CODE, "pretrain/utils/common_config.py", power=0.9, decay="epoch", warmup=0),
    **choices(
        Source.CODE,
        "pretrain/modules/builder.py: prototypes, weights and counts belong to one GPU",
        negatives="local",
        class_weights="enet",
        saliency_loss="balanced",
    ),
    **_AUGMENTATION,
}

_SECOND_HAND = "main paper, section 4 (read second-hand)"

PAPER = Preset(
    name="paper",
    version=1,
    summary="Algorithm 1 of the supplement with the main paper's values, ResNet-50 from MoCo v2",
    choices={
        **choices(Source.SEED, "section 1", arch="resnet50"),
        **choices(Source.SEED, "Figure 1; Table 1 has a supervised body too", init="moco_v2"),
        **choices(Source.SEED, "no freezing is described", freeze=False),
        **choices(Source.SEED, "Algorithm 1", class_weights="none", saliency_loss="plain"),
        **choices(Source.SEED, "Algorithm 1: the N pictures of the batch", negatives="global"),
        **choices(
            Source.PAPER,
            _SECOND_HAND,
            batch=64,
            queue=128,
            epochs=60,
            optimizer="sgd",
            lr=0.004,
            momentum=0.9,
            weight_decay=1e-4,
            temperature=0.5,
            key_momentum=0.999,
            dim=32,
        ),
        **choices(Source.PAPER, "main paper: a poly schedule (read second-hand); power as in the code", power=0.9),
        **choices(Source.CODE, "as the released code has it", resolution="input", decay="epoch", warmup=0),
        **_AUGMENTATION,
    },
)

RELEASED_SUPERVISED = Preset(
    name="released-supervised-saliency",
    version=1,
    summary="the released configuration for supervised saliency: supervised ResNet-50, first layers frozen",
    choices={
        **_RELEASED,
        **choices(Source.CODE, "pretrain/configs", init="supervised", freeze=True, batch=64, queue=128),
    },
)

RELEASED_UNSUPERVISED = Preset(
    name="released-unsupervised-saliency",
    version=1,
    summary="the released configuration for unsupervised saliency: ResNet-50 from MoCo v2",
    choices={
        **_RELEASED,
        **choices(Source.CODE, "pretrain/configs", init="moco_v2", freeze=False, batch=128, queue=256),
    },
)

SMALL = Preset(
    name="small",
    version=1,
    summary="a narrow network from scratch, minutes on a laptop: for small pictures such as those of `shapes`",
    choices={
        **choices(
            Source.OURS,
            "found in trials on `shapes`",
            arch="small",
            init="random",
            batch=32,
            queue=64,
            temperature=0.2,
            key_momentum=0.95,
            optimizer="adamw",
            lr=3e-3,
            weight_decay=1e-2,
            warmup=20,
            steps=480,
            resolution="feature",
            augment__size=64,
            augment__area=(0.4, 1.0),
            augment__brightness=0.4,
            augment__contrast=0.4,
            augment__saturation=0.4,
            augment__hue=0.5,
            augment__grey=0.3,
        ),
        **choices(Source.OURS, "by steps, since the run has few epochs", decay="step", power=0.9),
        **choices(
            Source.OURS,
            "as in the released code",
            dim=32,
            freeze=False,
            class_weights="enet",
            saliency_loss="balanced",
            augment__ratio=(3 / 4, 4 / 3),
            augment__jitter=0.8,
            augment__flip=0.5,
            masks__least=0.01,
            masks__most=0.99,
        ),
        **choices(Source.OURS, "the result does not depend on the number of processes then", negatives="global"),
    },
)

QUICKSTART = Preset(
    name="quickstart",
    version=1,
    summary="the short course of `bench quickstart`, of which six fit into a few minutes",
    choices={
        **SMALL.choices,
        **choices(Source.OURS, "what a short course on `shapes` was found to need, see results/README.md", steps=120),
    },
)

CARD = ProducerCard(
    name="maskcontrast",
    summary="MaskContrast: pixel embeddings and saliency from pictures with masks of their salient objects",
    run="bench.producers._maskcontrast:run",
    settings=MaskContrastSettings,
    presets=(SMALL, QUICKSTART, PAPER, RELEASED_SUPERVISED, RELEASED_UNSUPERVISED),
    exports=("reference",),
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals, ICCV 2021, arXiv 2102.06191",
)
"""`small` comes first: it is what data sets without a preset of their own are trained with."""
