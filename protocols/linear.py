"""Linear probe: a 1×1 convolution on the method's map, trained with the labels of the train split.

Supplement of arXiv 2102.06191, section 3, and the released code; other settings are those of the papers that came
after. The figure is that of the last epoch. Papers report the epoch that is best on the split they score, which is
stored beside it.
"""

from __future__ import annotations

import dataclasses
import re

from bench.contracts import Scope, Variant
from bench.errors import SettingError
from bench.records import ProtocolCard

from ._linear import PRESETS, LinearSettings, drop_epoch

__all__ = ["CARD", "expand", "price"]


CARD = ProtocolCard(
    name="linear",
    summary="linear probe: a 1×1 convolution trained with the labels of the train split",
    run="bench.protocols._probe:run",
    settings=LinearSettings,
    presets=PRESETS,
    kinds=("feature", "class_logit"),
    probes=True,
    layers=True,
    seeds=1,
    headline="as_predicted",
    expand="bench.protocols.linear:expand",
    predict="bench.protocols._probe:predict",
    price="bench.protocols.linear:price",
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals (ICCV 2021), supplement, section 3",
)

_READ_BY_A_HEAD = {"head", "size", "interpolation", "tap", "dtype", "decide"}
"""What there is to say where the head is not trained."""

_AUGMENTATION = ("flip", "rotate", "zoom", "area", "border")


def expand(settings: LinearSettings, scope: Scope) -> list[Variant]:
    """One row; the drop of the learning rate follows the number of epochs.

    Raises SettingError for settings that contradict each other.
    """
    for name in ("zoom", "area"):
        pair = getattr(settings, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            given = ",".join(map(str, pair))
            raise SettingError(f"linear.{name}={given} does not fit: expected two numbers, the smaller first")
    if settings.head not in ("auto", "train", "adapter") and not re.fullmatch(r"row:.+", settings.head):
        raise SettingError(f"linear.head={settings.head} does not fit: expected auto, train, adapter or row:KEY")
    if settings.head == "adapter" and scope.classifier == 0:
        raise SettingError(f"linear.head=adapter: {scope.method} brings no classifier; take head=train")
    if settings.head not in ("auto", "train") and (unread := sorted(scope.explicit - _READ_BY_A_HEAD)):
        raise SettingError(
            f"linear.head={settings.head} trains nothing and does not read {', '.join(unread)}: drop it, or take "
            "head=train"
        )
    for name in ("lr", "weight_decay"):
        if not getattr(settings, name):
            raise SettingError(f"linear.{name} is empty: give a number, or several to choose from, e.g. 0.01,0.1")
    if "choose_on" in scope.explicit and not (settings.compares or len(settings.lr) * len(settings.weight_decay) > 1):
        raise SettingError(
            "linear.choose_on says what chooses between several maps, lr or weight_decay, and there is one of each: "
            "name several, e.g. --set linear.tap=search, or drop it"
        )
    if settings.features == "cached" and (unread := sorted(scope.explicit & set(_AUGMENTATION))):
        raise SettingError(
            f"features=cached does not augment pictures and does not read {', '.join(unread)}: drop it, or take "
            "features=augmented"
        )
    at = drop_epoch(settings)
    drop = "none" if at is None else f"{at}/{settings.epochs}"
    return [Variant(settings=dataclasses.replace(settings, drop=drop))]


def price(settings: LinearSettings, scope: Scope) -> str:
    """What training costs in forward passes."""
    pictures = scope.train or 0
    if settings.features == "cached":
        return f"{pictures} forward passes for the train split, kept in the cache; {settings.epochs} epochs read them"
    passes = pictures * settings.epochs
    first = f", after {pictures} of plain ones to standardise by" if settings.normalize == "standardize" else ""
    return f"{passes} forward passes of augmented pictures ({settings.epochs} epochs of {pictures} pictures){first}"
