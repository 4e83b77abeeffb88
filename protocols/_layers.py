"""Which of several maps of a method is scored, and the clustering of the one that is.

Supplement of arXiv 2102.06191, section 2, Colorization: features of several layers are tried, and the best results are
reported, for the linear classifier and for K-means separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contracts import Outcome, Painting, Work
from bench.metrics import score_rules
from bench.settings import deciding

from . import _clustering
from ._draw import held_out
from ._settings import RULES, ClusterSettings, OverclusteredSettings

__all__ = ["by_matching", "choice_note", "one_to_one", "predict"]

JUDGES = (0, 1, 2)
"""Seeds of the clusterings whose mean chooses: of single ones, chance would choose between layers that are close."""


def one_to_one(work: Work, settings: ClusterSettings, seed: int) -> Outcome:
    """Cluster the map, or the one of several that is chosen by the mIoU under one-to-one matching."""
    return _run(work, settings, seed, "one_to_one_iou")


def by_matching(work: Work, settings: OverclusteredSettings, seed: int) -> Outcome:
    """The same, chosen by the mIoU under the rule that the settings name."""
    return _run(work, settings, seed, RULES[settings.matching])


def predict(work: Work, settings: ClusterSettings, arrays: Mapping[str, NDArray[Any]]) -> Painting:
    """The clusters of a finished row on other pictures."""
    which = int(arrays["which"]) if "which" in arrays else 0
    return replace(_clustering.predict(work.alone(which), settings, arrays), which=which)


def choice_note(chosen: str, tried: Mapping[str, Mapping[str, float]], held: int) -> str:
    """What was chosen, by what, and how all did, for the reader of a table.

    tried: the figures of each, of which `held_out_miou`, where it is there, and `miou` are shown. held: pictures that
    were held out, 0 where the scored split chose.
    """
    names = ("held_out_miou", "miou") if held else ("miou",)
    shown = "; ".join(
        f"{name}: {', '.join(f'{100 * figures[key]:.1f}' for key in names)}" for name, figures in tried.items()
    )
    if held:
        pictures = f"{held} picture{'s'[: held > 1]}"
        by, what = f"a tenth of the train split ({pictures})", "mIoU held out, on the scored split"
    else:
        by, what = "the scored split itself", "mIoU"
    return f"chosen by {by}: {chosen}; tried ({what}): {shown}"


def _run(work: Work, settings: ClusterSettings, seed: int, rule: str) -> Outcome:
    """The row's seed of one map; every map is clustered with the same seeds, whatever the row's, to choose it."""
    if len(work.taps) == 1:
        return _clustering.run(work, settings, seed)
    names = work.maps("train").names if settings.choose_on == "train" else ()
    held = held_out(names, work.label_counts("train")) if names else []
    record = {"stage": "layers", "version": 1, "rule": rule, "held": held, **deciding(settings)}
    found = work.remember(record, lambda: _figures(work, settings, held, rule), keep=False)
    tried = {
        f"tap={tap}": {name: float(values[index]) for name, values in found.items()}
        for index, tap in enumerate(work.taps)
    }
    which = int(np.argmax(found["held_out_miou"] if held else found["miou"]))
    outcome = _clustering.run(work.alone(which), settings, seed)
    outcome.arrays["which"] = np.array(which, np.int32)
    outcome.painting = replace(outcome.layout, which=which) if outcome.layout else None
    outcome.facts |= {"tried": tried}
    seeds = f"means over seeds {JUDGES[0]} to {JUDGES[-1]}"
    note = f"{choice_note(f'tap={work.taps[which]}', tried, len(held))} ({seeds})"
    work.say(note)
    outcome.notes = (note, *outcome.notes)
    return outcome


def _figures(work: Work, settings: ClusterSettings, held: list[int], rule: str) -> dict[str, NDArray[Any]]:
    """mIoU of every map, on the scored split over all classes, and on what is held out over those present there.

    The held-out pictures are clustered as the scored ones are, or take the nearest centroids of the other pictures of
    the train split.
    """
    taps = range(len(work.taps))
    figures = {"miou": np.array([_mean(work.alone(which), settings, rule, "miou") for which in taps])}
    if held:
        part = work.part(held)
        figures["held_out_miou"] = np.array([_mean(part.alone(w), settings, rule, "miou_present") for w in taps])
    return figures


def _mean(work: Work, settings: ClusterSettings, rule: str, metric: str) -> float:
    settings = replace(settings, clusters=min(settings.clusters, work.maps("eval").vectors))
    return float(np.mean([_scored(work, settings, seed, rule)[metric] for seed in JUDGES]))


def _scored(work: Work, settings: ClusterSettings, seed: int, rule: str) -> dict[str, Any]:
    counts, _ = _clustering.run(work, settings, seed).counts.canonical()
    return dict(score_rules(counts.confusion(), work.background)[rule])
