"""Segment retrieval: the object of each picture takes the class of the nearest object of the train split.

The protocol of arXiv 2102.06191 (section 4.4 and its released code): a picture's foreground is one object; its label in
the memory is the most frequent class under it, background and void apart; a query's whole foreground gets the label of
the key of largest cosine, the rest is background. Nothing is matched: ids are classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Outcome, Painting, Scope, Variant, Work
from bench.errors import SettingError
from bench.records import Choice, Preset, ProtocolCard, Source
from bench.settings import ObjectSettings, setting

__all__ = ["CARD", "SEVEN", "RetrievalSettings", "expand", "predict", "run"]

SEVEN = ("aeroplane", "bottle", "bus", "car", "cat", "cow", "person")
"""The classes of the 7-class variant."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings(ObjectSettings):
    """Which objects are made, and which classes count."""

    classes: Literal["all", "seven"] = setting(
        "all", "all classes, or the 7 of PASCAL VOC: the others are void then, and the background leaves the mean"
    )

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        return "labels"


_PAPER = {
    "foreground": Choice("auto", Source.PAPER, "the predicted saliency mask"),
    "pooling": Choice("mean", Source.PAPER, "the mean embedding in the mask; the released code weighs by the logit"),
    "threshold": Choice(0.0, Source.OURS, "probability one half; the released code cuts the logit at 0.5"),
    "interpolation": Choice("bicubic", Source.CODE, "the released loader"),
    "classes": Choice("all", Source.PAPER, "Table 5 has 7 and 21 classes (read second-hand)"),
}

CARD = ProtocolCard(
    name="retrieval",
    summary="nearest object of the train split, its class painted on the whole foreground",
    run="bench.protocols.retrieval:run",
    settings=RetrievalSettings,
    presets=(
        Preset(
            name="paper",
            version=1,
            summary="512×512, mean embedding of the foreground, scored at the pictures' own size",
            choices={"size": Choice("512", Source.CODE, "the released evaluation config"), **_PAPER},
        ),
        Preset(
            name="native",
            version=1,
            summary="as `paper`, each picture at its own size",
            choices={"size": Choice("native", Source.OURS, "no picture is stretched"), **_PAPER},
        ),
        Preset(
            name="released-code",
            version=1,
            summary="objects as the released code makes them, which fills its memory from the list train of VOC (1,464 "
            "pictures; its README says train_aug) and scores at 512×512; here the memory is the data set's own train "
            "split (voc: trainaug, 10,582), and each picture is scored at its own size",
            choices={
                "size": Choice("512", Source.CODE, "segmentation/utils/common_config.py"),
                "interpolation": Choice("bicubic", Source.CODE, "segmentation/utils/common_config.py"),
                "foreground": Choice("auto", Source.CODE, "the saliency head"),
                "threshold": Choice(0.5, Source.CODE, "of the raw logit"),
                "pooling": Choice("logit", Source.CODE, "the embedding weighted by the raw logit"),
                "classes": Choice("all", Source.CODE, "both are printed"),
            },
        ),
    ),
    needs_objects=True,
    seeded=False,
    headline="as_predicted",
    expand="bench.protocols.retrieval:expand",
    predict="bench.protocols.retrieval:predict",
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals (ICCV 2021), arXiv 2102.06191",
)


def expand(settings: RetrievalSettings, scope: Scope) -> list[Variant]:
    """One row, which says which list fills the memory: the paper and its code do not agree on it."""
    said = f"the memory is filled from the list {scope.train_split!r} of {scope.train} pictures"
    return [Variant(settings=settings, notes=(said,) if scope.train else ())]


def run(work: Work, settings: RetrievalSettings, seed: int) -> Outcome:
    """Paint the object of every scored picture with the class of its nearest key; nothing here depends on the seed.

    A data set without a background class: all labels count in the memory, and pixels around objects predict no class.
    """
    from bench.objects import majority, nearest, paint_objects

    from ._draw import require_labels
    from ._objects import pooled

    require_labels(work.label_counts("train"), "the train split")
    counted = _counted(work, settings)
    how = settings.with_own_foreground
    memory, queries = work.objects("train", how), work.objects("eval", how)
    kept = counted if work.background is None else (*counted, work.background)
    labels = majority(_restricted(memory.tables[:, 1], kept), work.background)
    keys = memory.found & (labels >= 0)
    around = work.classes if work.background is None else work.background
    ids = np.full(len(queries.found), around, np.int32)
    if keys.any() and queries.found.any():
        ids[queries.found] = labels[keys][nearest(queries.vectors[queries.found], memory.vectors[keys])]
    clusters = work.classes + (work.background is None)
    notes = [pooled(how), *_notes(keys, memory.found, queries.found)]
    for note in notes[1:]:
        work.say(note)
    return Outcome(
        counts=paint_objects(_restricted(queries.tables, kept), ids, around, clusters),
        painting=Painting(objects=ids, around=around),
        arrays={"objects": ids, "around": np.array(around, np.int32)},
        shared={"keys": memory.vectors[keys], "key_labels": labels[keys].astype(np.int32)},
        notes=tuple(notes),
        facts={"keys": float(keys.sum()), "queries": float(queries.found.sum())},
        matched=np.array([*range(work.classes), -1][:clusters], np.int64),
        among=counted if settings.classes == "seven" else (),
    )


def predict(work: Work, settings: RetrievalSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The memory of a finished row, asked for other pictures."""
    from bench.objects import nearest

    queries, around = work.objects("eval", settings.with_own_foreground, labels=False), int(arrays["around"])
    ids = np.full(len(queries.found), around, np.int32)
    if queries.found.any() and len(arrays["keys"]):
        ids[queries.found] = arrays["key_labels"][nearest(queries.vectors[queries.found], arrays["keys"])]
    return Painting(objects=ids, around=around)


def _counted(work: Work, settings: RetrievalSettings) -> tuple[int, ...]:
    """The classes that the means are taken over."""
    if settings.classes == "all":
        return tuple(range(work.classes))
    absent = [name for name in SEVEN if name not in work.class_names]
    if absent:
        raise SettingError(
            f"classes=seven is for the classes of PASCAL VOC; here is no {', '.join(absent)}: take classes=all"
        )
    return tuple(work.class_names.index(name) for name in SEVEN)


def _restricted(tables: NDArray[np.int64], kept: tuple[int, ...]) -> NDArray[np.int64]:
    """Counts (…, C + 1) in which the pixels of all classes that are not kept are void."""
    void = np.ones(tables.shape[-1], np.bool_)
    void[list(kept)] = False
    restricted = np.where(void, 0, tables)
    restricted[..., -1] = tables[..., void].sum(-1)
    return restricted


def _notes(keys: NDArray[np.bool_], memory: NDArray[np.bool_], queries: NDArray[np.bool_]) -> list[str]:
    notes = []
    skipped = len(keys) - int(keys.sum())
    if skipped:
        blank = int((~memory).sum())
        notes.append(
            f"{skipped} of {len(keys)} pictures of the train split are not in the memory: {blank} without foreground, "
            f"{skipped - blank} without a class in it"
        )
    if not keys.any():
        notes.append("the memory is empty: nothing but background is predicted")
    blank = int((~queries).sum())
    if blank:
        notes.append(f"{blank} of {len(queries)} pictures have no foreground: they are all background")
    return notes
