"""K-means with more clusters than classes, each cluster taking the class it overlaps best.

Supplement of arXiv 2102.06191, section 4 and Table 1: K of 21, 50, 100, 200 and 500 on PASCAL VOC. The supplement does
not state the many-to-one rule; the released code gives each cluster the class of largest IoU, which is the headline;
at K = number of classes that code matches one to one, and so does the preset `released-code`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bench.contracts import Scope, Variant
from bench.errors import SettingError
from bench.records import Choice, Preset, ProtocolCard, Source
from bench.settings import setting

from ._settings import PRESETS, RULES, Matching, OverclusteredSettings, countable, engine_for, with_effort

__all__ = ["CARD", "OverclusteringSettings", "expand"]

MORE = (50, 100, 200, 500)
"""The paper's K beyond the number of classes (supplement, Table 1)."""


@dataclass(frozen=True, kw_only=True)
class OverclusteringSettings(OverclusteredSettings):
    """As for `kmeans`, with a list of K; a row holds one K."""

    clusters: tuple[int, ...] = setting(
        (), "every K, comma-separated; empty: the classes, 50, 100, 200, 500", minimum=1
    )  # type: ignore[assignment]


def _with_matching(preset: Preset) -> Preset:
    """The preset of K-means with the rule that the released code follows, where it is the one of that name."""
    if preset.name != "released-code":
        return preset
    rule = Choice("one-at-classes", Source.CODE, "segmentation/utils/kmeans_utils.py: Hungarian on IoU at 21 clusters")
    return dataclasses.replace(preset, choices={**preset.choices, "matching": rule})


CARD = ProtocolCard(
    name="overclustering",
    summary="K-means with many K from one feature pass, many-to-one matching",
    run="bench.protocols._layers:by_matching",
    settings=OverclusteringSettings,
    presets=tuple(_with_matching(preset) for preset in PRESETS),
    headline="many_to_one_iou",
    layers=True,
    expand="bench.protocols.overclustering:expand",
    predict="bench.protocols._layers:predict",
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals (ICCV 2021), supplement, section 4",
)


def expand(settings: OverclusteringSettings, scope: Scope) -> list[Variant]:
    """One row per K. The default list stops at half the number of vectors; a K that was asked for may not exceed it.

    Of objects there are at most as many as pictures; where there turn out to be fewer, K is cut by the run itself.
    """
    wanted = tuple(dict.fromkeys(settings.clusters)) or (scope.classes, *(k for k in MORE if k > scope.classes))
    base = _one_row(settings, 0)
    found = countable(base, scope, min(wanted))
    vectors, unit = found.vectors if found.vectors is not None else found.pictures, found.unit
    notes: tuple[str, ...] = ()
    if found.vectors is not None and settings.clusters and max(wanted) > found.vectors:
        raise SettingError(
            f"--clusters {max(wanted)} is more than the {found.vectors} vectors of the split: ask for at most that "
            "many, or use more or larger pictures"
        )
    if vectors is not None and not settings.clusters:
        kept = tuple(k for k in wanted if k <= vectors / 2)
        if kept != wanted:
            left = ", ".join(str(k) for k in wanted if k not in kept)
            notes = (f"K = {left} left out of the default list: more than half of the {vectors} {unit}",)
        if not kept:
            raise SettingError(
                f"no K of the default list {wanted} is at most half of the {vectors} {unit} of the split: name "
                "smaller ones with --clusters"
            )
        wanted = kept
    rows = [
        dataclasses.replace(
            with_effort(base),
            clusters=k,
            engine=engine_for(settings, scope),
            whiten=settings.whiten and settings.pca != 0,
            matching=_settled(settings.matching, k, scope.classes),
        )
        for k in wanted
    ]
    return [Variant(settings=row, notes=notes, headline=RULES[row.matching]) for row in rows]


def _one_row(settings: OverclusteringSettings, clusters: int) -> OverclusteredSettings:
    """The settings of a row, whose K is one number."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(OverclusteredSettings)}
    return OverclusteredSettings(**{**fields, "clusters": clusters})


def _settled(matching: Matching, clusters: int, classes: int) -> Matching:
    if matching == "one-at-classes":
        return "one" if clusters == classes else "many"
    return matching
