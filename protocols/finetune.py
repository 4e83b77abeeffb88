"""Few-label fine-tuning: the whole network is trained with the labels of a part of the train split.

Supplement of arXiv 2102.06191, section 5: 1, 2, 5, 12.5 and 100 % of the labels, the mean over three random splits.
Iterations, crops and augmentation are not published; the choices here are ours and tagged so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

from bench.contracts import Scope, Variant
from bench.errors import MismatchError, SettingError
from bench.records import ProtocolCard

from ._finetune_settings import PRESETS, FinetuneSettings, fraction, settle, share

__all__ = ["CARD", "expand", "price"]

CARD = ProtocolCard(
    name="finetune",
    summary="the whole network trained with 1 to 100 % of the labels",
    run="bench.protocols._finetune:run",
    settings=FinetuneSettings,
    presets=PRESETS,
    seeds=3,
    headline="as_predicted",
    version=2,
    expand="bench.protocols.finetune:expand",
    predict="bench.protocols._finetune:predict",
    price="bench.protocols.finetune:price",
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals (ICCV 2021), supplement, section 5",
)


_TRAINING = (
    "fractions", "split", "names", "bn", "lr", "last_lr", "decoder_lr_mult", "iterations", "batch", "drop_last",
    "momentum", "weight_decay", "power", "init_std", "crop", "scale", "flip", "keep",
)  # fmt: skip
"""What a stored network does not read."""


def expand(settings: FinetuneSettings, scope: Scope) -> list[Variant]:
    """One row per fraction; one for a list of names.

    What follows from the arm stays `auto` here, so that methods of both arms stand in one column of a table; the row's
    facts say what it came to.
    Raises SettingError for fractions that are none, and settings that contradict each other or the method.
    """
    for name, of in (("reads", "tap"), ("names_sha256", "names")):
        if name in scope.explicit:
            raise SettingError(f"finetune.{name} is filled in: give finetune.{of}")
    for name in ("lr", "last_lr"):
        if name in scope.explicit and not getattr(settings, name):
            raise SettingError(
                f"finetune.{name}=0 does not fit: expected numbers above 0, or drop it for the rate of the arm"
            )
    settings = dataclasses.replace(settings, reads=settings.tap)
    if len(settings.scale) != 2 or settings.scale[0] > settings.scale[1]:
        given = ",".join(map(str, settings.scale))
        raise SettingError(f"finetune.scale={given} does not fit: expected two numbers, the smaller first")
    if scope.parameters is False:
        raise MismatchError(f"{scope.method} has no weights, which finetune trains: choose another method")
    if settings.network != "train" and not re.fullmatch(r"row:.+", settings.network):
        raise SettingError(f"finetune.network={settings.network} does not fit: expected train or row:KEY")
    if scope.decoder_tap is not None:
        settle(settings, own=scope.decoder_tap)
    if settings.network != "train":
        if unread := sorted(scope.explicit & set(_TRAINING)):
            raise SettingError(
                f"finetune.network={settings.network} trains nothing and does not read {', '.join(unread)}: drop it, "
                "or drop finetune.network"
            )
        return [Variant(settings=dataclasses.replace(settings, fractions=()))]
    if settings.names:
        if "fractions" in scope.explicit:
            raise SettingError("finetune.names lists the pictures to learn from: drop finetune.fractions")
        try:
            digest = hashlib.sha256(Path(settings.names).read_bytes()).hexdigest()
        except OSError as error:
            raise SettingError(
                f"finetune.names={settings.names} cannot be read ({error.strerror}): check the path"
            ) from error
        return [Variant(settings=dataclasses.replace(settings, fractions=(), names_sha256=digest))]
    if not settings.fractions:
        raise SettingError("finetune.fractions is empty: give a share of the train split, e.g. 5%")
    shares = dict.fromkeys(share(fraction(text)) for text in settings.fractions)
    return [Variant(settings=dataclasses.replace(settings, fractions=(text,))) for text in shares]


def price(settings: FinetuneSettings, scope: Scope) -> str:
    """What training costs in passes of the network."""
    passes = settings.iterations * settings.batch
    part = f"{settings.fractions[0]} of {scope.train or 0} pictures" if settings.fractions else "the listed pictures"
    return f"{part}: {passes} passes forward and backward for each seed"
