"""The settings of the linear probe and its presets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bench.errors import SettingError
from bench.records import Choice, Preset, Source
from bench.settings import InputSettings, setting

__all__ = ["PRESETS", "LinearSettings", "drop_epoch"]


@dataclass(frozen=True, kw_only=True)
class LinearSettings(InputSettings):
    """How the head is trained, on which pictures, and where it is judged.

    Several learning rates, weight decays or maps (`tap=a,b`, or `tap=search` for all) are tried in one pass: each
    setting trains two heads, one without a tenth of the train split, on which it is judged, and one on all of it; with
    `choose_on=scored` only the latter. A train split of which fewer than two pictures have labels is refused then.
    """

    head: str = setting(
        "auto",
        "train, adapter (the checkpoint's own classifier), row:KEY (of a finished row), or auto: adapter or train",
    )
    features: Literal["augmented", "cached"] = setting(
        "augmented", "maps of augmented pictures are computed in every epoch, or those of plain pictures once"
    )
    epochs: int = setting(60, "passes over the train split", minimum=1)
    batch: int = setting(16, "pictures a step", minimum=1)
    drop_last: bool = setting(False, "leave out an epoch's last batch where it is smaller than the others")
    lr: tuple[float, ...] = setting((0.1,), "learning rate, or several to choose from", above=0, maximum=1e38)
    weight_decay: tuple[float, ...] = setting(
        (1e-4,), "weight decay, or several to choose from", minimum=0, maximum=1e38
    )
    momentum: float = setting(0.9, "momentum of SGD", minimum=0, maximum=1)
    drop: str = setting("40/60", "E/N: after E of N epochs the learning rate is a tenth; scales with epochs; or none")
    init_std: float | Literal["uniform"] = setting(
        0.01,
        "standard deviation of the initial weights, biases begin at 0; or uniform: both within ±1/√width, as torch's "
        "convolutions begin",
        minimum=0,
    )
    normalize: Literal["none", "l2", "standardize", "bn"] = setting(
        "none",
        "each vector to unit length, each dimension to mean 0 and variance 1 over the cells of the plain train "
        "pictures that the head sees, or batch norm without scale",
    )
    grid: int = setting(
        0, "labels and logits on N × N cells while training; 0: at the size of the input", minimum=0, maximum=2048
    )
    decide: Literal["label", "input"] = setting(
        "label", "where a pixel's class is decided: at the label's own size, or at the input's and then nearest"
    )
    flip: float = setting(0.5, "probability of a mirrored picture", minimum=0, maximum=1)
    rotate: float = setting(5.0, "pictures are turned by ± this many degrees", minimum=0, maximum=180)
    zoom: tuple[float, ...] = setting((0.75, 1.25), "least and largest factor, about the centre", minimum=0.01)
    area: tuple[float, ...] = setting((1.0, 1.0), "share of the picture in a random crop, then stretched", minimum=0.01)
    border: Literal["void", "background"] = setting("void", "label of the black border that a turned picture has")
    choose_on: Literal["train", "scored"] = setting(
        "train",
        "what chooses between several: a tenth of the train split, held out, or, as in papers, the scored split",
    )
    val_every: int = setting(1, "epochs between scores of the best-on-val record; 0: none is kept", minimum=0)

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        return "labels"


_OPTIMIZER = {
    "momentum": Choice(0.9, Source.SEED),
    "weight_decay": Choice((1e-4,), Source.SEED),
    "normalize": Choice("none", Source.SEED, "none is described"),
    "head": Choice("auto", Source.OURS, "released linear checkpoints bring their classifier"),
}

_CODE_LOADER = {
    "interpolation": Choice("bicubic", Source.CODE, "segmentation/utils/common_config.py"),
    "flip": Choice(0.5, Source.CODE, "segmentation/data/custom_transforms.py"),
    "rotate": Choice(5.0, Source.CODE, "segmentation/utils/common_config.py"),
    "zoom": Choice((0.75, 1.25), Source.CODE, "segmentation/utils/common_config.py"),
    "area": Choice((1.0, 1.0), Source.CODE, "no crop"),
    "init_std": Choice(0.01, Source.CODE, "segmentation/utils/common_config.py; biases 0"),
    "drop_last": Choice(True, Source.CODE, "the loader of the train set"),
    "grid": Choice(0, Source.CODE, "logits are brought to the size of the input"),
}

_PAPER = {
    "features": Choice(
        "augmented", Source.CODE, "open in the supplement; the network is frozen, batch norm in evaluation mode"
    ),
    "epochs": Choice(60, Source.SEED),
    "batch": Choice(16, Source.SEED),
    "lr": Choice((0.1,), Source.SEED, "the author: baselines were tuned one by one (issue 7)"),
    "drop": Choice("40/60", Source.SEED, "0.1, then 0.01 after 40 epochs; the released configs have 25"),
    "border": Choice(
        "background", Source.CODE, "open in the supplement; void where the data set has no background class"
    ),
    "decide": Choice("label", Source.OURS, "the released code: argmax at 512×512, then nearest"),
    "val_every": Choice(
        1, Source.CODE, "the released code takes the best epoch on val; here it stands beside the last"
    ),
    **_OPTIMIZER,
    **_CODE_LOADER,
}

_SERVES_ANY = {
    "lr": Choice((0.1, 0.01, 0.001, 0.0003), Source.OURS, "0.1 is the seed's; other networks need other rates"),
    "normalize": Choice("standardize", Source.OURS, "one set of rates then serves features of any scale"),
}
"""What `native` and `cached` do unless told otherwise."""

_LEOPART = "Ziegler & Asano, CVPR 2022, and its released configs"
_LEOPART_CODE = "experiments/linear_probing/linear_finetune.py"

_LEOPART_CHOICES = {
    "size": Choice("448", Source.PAPER, _LEOPART),
    "interpolation": Choice("bilinear", Source.PAPER, _LEOPART),
    "features": Choice("augmented", Source.PAPER, _LEOPART),
    "epochs": Choice(25, Source.PAPER, _LEOPART),
    "batch": Choice(60, Source.PAPER, _LEOPART),
    "drop_last": Choice(True, Source.CODE, f"{_LEOPART_CODE}: of the train set; all of val is scored"),
    "lr": Choice((0.01,), Source.PAPER, _LEOPART),
    "drop": Choice("20/25", Source.PAPER, _LEOPART),
    "grid": Choice(100, Source.PAPER, _LEOPART),
    "flip": Choice(0.5, Source.PAPER, _LEOPART),
    "rotate": Choice(0.0, Source.PAPER, "none"),
    "zoom": Choice((1.0, 1.0), Source.PAPER, "none"),
    "area": Choice((0.8, 1.0), Source.PAPER, _LEOPART),
    "momentum": Choice(0.9, Source.PAPER, _LEOPART),
    "weight_decay": Choice((1e-4,), Source.PAPER, _LEOPART),
    "normalize": Choice("none", Source.PAPER, _LEOPART),
    "init_std": Choice("uniform", Source.CODE, f"{_LEOPART_CODE}: a convolution as torch makes it"),
    "decide": Choice("label", Source.OURS, "they score at 448×448"),
    "val_every": Choice(1, Source.PAPER, "they choose on val; here it stands beside the last epoch"),
    "head": Choice("auto", Source.OURS),
}

PRESETS = (
    Preset(
        name="paper",
        version=2,
        summary="512×512, whole train split, 60 epochs of augmented pictures, SGD 0.1 and 0.01 after 40 epochs",
        choices={"size": Choice("512", Source.CODE, "open in the supplement"), **_PAPER},
    ),
    Preset(
        name="native",
        version=3,
        summary="as `paper`, each picture at its own size; standardised features, the best of four rates by a tenth "
        "of train",
        choices={**_PAPER, "size": Choice("native", Source.OURS, "no picture is stretched"), **_SERVES_ANY},
    ),
    Preset(
        name="paper-search",
        version=1,
        summary="as `paper`, on every layer of features; the one that is best on the scored split counts",
        choices={
            "size": Choice("512", Source.CODE, "open in the supplement"),
            "tap": Choice("search", Source.SEED, "section 2, Colorization: the best of several layers"),
            "choose_on": Choice("scored", Source.OURS, "not stated; the best results are reported"),
            **_PAPER,
        },
    ),
    Preset(
        name="released-code",
        version=1,
        summary="what the released code of MaskContrast does: 0.1 for 26 epochs, black borders are background",
        choices={
            **_PAPER,
            "size": Choice("512", Source.CODE, "segmentation/configs"),
            "lr": Choice((0.1,), Source.CODE, "segmentation/configs"),
            "epochs": Choice(60, Source.CODE, "segmentation/configs"),
            "batch": Choice(16, Source.CODE, "segmentation/configs"),
            "drop": Choice("26/60", Source.CODE, "lr_decay_epochs 25, counted from 0 and compared by >"),
            "decide": Choice("input", Source.CODE, "argmax at 512×512, resized by nearest neighbour"),
        },
    ),
    Preset(
        name="leopart",
        version=2,
        summary="448×448, labels on 100×100, 25 epochs, batch 60, lr 0.01: for vision transformers",
        choices=_LEOPART_CHOICES,
    ),
    Preset(
        name="leopart-resnet",
        version=2,
        summary="as `leopart`, at the learning rate that they take for ResNets",
        choices={**_LEOPART_CHOICES, "lr": Choice((0.1,), Source.PAPER, _LEOPART)},
    ),
    Preset(
        name="cached",
        version=2,
        summary="as `native`, on maps that are computed once, without augmentation: minutes instead of hours",
        choices={
            "size": Choice("native", Source.OURS, "shares the maps of kmeans:native"),
            "interpolation": Choice("bicubic", Source.CODE, "the released loader"),
            "features": Choice("cached", Source.OURS, "one pass of the network"),
            "epochs": Choice(60, Source.SEED),
            "batch": Choice(16, Source.SEED),
            "drop": Choice("40/60", Source.SEED),
            "init_std": Choice(0.01, Source.CODE),
            "drop_last": Choice(False, Source.OURS, "every picture counts in every epoch"),
            "grid": Choice(0, Source.CODE),
            "decide": Choice("label", Source.OURS),
            "val_every": Choice(1, Source.OURS),
            **_OPTIMIZER,
            **_SERVES_ANY,
        },
    ),
)


def drop_epoch(settings: LinearSettings) -> int | None:
    """The number of epochs after which the learning rate is a tenth; None for never."""
    if settings.drop == "none":
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", settings.drop)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingError(
            f"linear.drop={settings.drop} does not fit: expected E/N with E from 1 to N, e.g. 40/60, or none"
        )
    return max(1, round(settings.epochs * int(match[1]) / int(match[2])))
