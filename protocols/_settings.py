"""The settings of K-means, its presets, and what `auto` comes to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from bench.contracts import Scope
from bench.errors import SettingError
from bench.records import Choice, Preset, Source
from bench.settings import ObjectSettings, setting

__all__ = [
    "PRESETS",
    "RULES",
    "ClusterSettings",
    "Countable",
    "OverclusteredSettings",
    "countable",
    "effort_note",
    "engine_for",
    "settle",
    "with_effort",
]

MINIBATCH_STARTS = 3
EFFORT = ("restarts", "candidates", "sample", "passes", "finished")
"""The settings that say how hard K-means tries."""

Some = TypeVar("Some", bound="ClusterSettings")

Matching = Literal["many", "one-at-classes", "one"]
Engine = Literal["auto", "faiss", "sklearn", "torch"]

PIXEL_DIMENSIONS = 32


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(ObjectSettings):
    """What is clustered, how its vectors are made, and how they are clustered."""

    clusters: int = setting(0, "K, the background included; 0: the number of classes", minimum=0)
    unit: Literal["auto", "pixel", "object"] = setting(
        "auto",
        "cells of the map are clustered, or an object per picture; auto: objects where there is a foreground",
    )
    background: Literal["auto", "saliency", "cluster"] = setting(
        "auto",
        "saliency: what is not foreground is a cluster of its own; cluster: all pixels are clustered; auto: saliency "
        "for objects, and for pixels where `foreground` is given",
    )
    normalize: Literal["auto", "none", "l2", "standardize"] = setting(
        "auto",
        "each vector to unit length (l2), or each dimension to unit variance (standardize), before the PCA; auto: l2 "
        "for objects, none for pixels",
    )
    pca: int | Literal["auto"] = setting(
        "auto", "dimensions kept by an exact PCA; 0: no PCA; auto: 0 for objects, 32 for pixels", minimum=0
    )
    whiten: bool = setting(True, "each dimension that the PCA keeps is scaled to unit variance")
    algorithm: Literal["lloyd", "minibatch"] = setting(
        "lloyd", "K-means on all vectors, or scikit-learn's MiniBatchKMeans"
    )
    engine: Engine = setting("auto", "what computes Lloyd's nearest centroids")
    iterations: int = setting(50, "at most so many iterations of Lloyd's algorithm", minimum=1)
    tolerance: float = setting(
        1e-4, "stop when the squared shift of the centroids is below this × the mean variance", minimum=0
    )
    restarts: int = setting(20, "starts of K-means; the clustering of least inertia counts", minimum=0)
    candidates: int = setting(
        3, "draws per centre of a start, the best of which is taken; 1: plain k-means++", minimum=0
    )
    sample: int = setting(
        16384, "starts are drawn and tried among so many vectors; 0, or where there are fewer: among all", minimum=0
    )
    passes: int = setting(10, "passes of Lloyd's algorithm by which starts are compared", minimum=0)
    finished: int = setting(
        3,
        "so many of the best starts go on, on all vectors, up to `iterations` more; as many as restarts: all do",
        minimum=0,
    )
    blank: Literal["skip", "zero"] = setting(
        "skip", "pictures without foreground are left out of the clustering of objects, or take part as zero vectors"
    )
    first_state: int = setting(0, "added to the seed", minimum=0)
    fit: Literal["eval", "train"] = setting(
        "eval", "the split whose vectors are clustered; the scored one takes the nearest"
    )
    choose_on: Literal["train", "scored"] = setting(
        "train", "what chooses between several maps: a tenth of the train split, or, as in papers, the scored split"
    )

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        if self.compares and self.choose_on == "train":
            return "labels"
        return "pictures" if self.fit == "train" else "nothing"


@dataclass(frozen=True, kw_only=True)
class OverclusteredSettings(ClusterSettings):
    """The same with how clusters are matched, for rows of many K."""

    matching: Matching = setting(
        "many",
        "each cluster takes the class it overlaps best (many); each class one cluster (one); one-at-classes: one where "
        "K is the number of classes, else many",
    )


RULES = {"many": "many_to_one_iou", "one": "one_to_one_iou"}
"""The matching rule of the headline, by a settled `matching`."""

_SHARED = {
    "unit": Choice("auto", Source.SEED, "MaskContrast's objects, other methods' pixels"),
    "foreground": Choice("auto", Source.SEED, "the method's own saliency head"),
    "background": Choice("auto", Source.SEED, "the saliency head identifies the background; else it is one of K"),
    "pooling": Choice("mean", Source.SEED, "mean embeddings of the foreground objects"),
    "threshold": Choice(0.0, Source.OURS, "probability one half; the released code cuts the logit at 0.5"),
    "normalize": Choice("auto", Source.SEED, "L2-normalized feature vectors of objects; not stated for pixels"),
    "pca": Choice(
        "auto",
        Source.AUTHOR,
        "issue 14 of the released code: pixels to MaskContrast's 32 dimensions; the supplement has none for objects",
    ),
    "whiten": Choice(True, Source.OURS, "the supplement does not say; the released evaluator whitens"),
    "blank": Choice("skip", Source.OURS, "a picture without foreground has no object"),
    **{
        name: Choice(value, Source.OURS, "not stated; as good as ten full starts (results/effort.md), for any unit")
        for name, value in {"restarts": 20, "candidates": 3, "sample": 16384, "passes": 10, "finished": 3}.items()
    },
    "interpolation": Choice("bicubic", Source.CODE, "the released loader"),
    "iterations": Choice(50, Source.OURS, "not stated; twice the default of faiss"),
    "fit": Choice("eval", Source.CODE, "clusters are fitted on the pictures they are scored on"),
}

PRESETS = (
    Preset(
        name="paper",
        version=3,
        summary="512×512; objects of the method's foreground, L2-normalised, else all pixels, PCA 32, whitened",
        choices={"size": Choice("512", Source.CODE, "the released evaluation config"), **_SHARED},
    ),
    Preset(
        name="paper-search",
        version=2,
        summary="as `paper`, on every layer of features; the one that is best on the scored split counts",
        choices={
            "size": Choice("512", Source.CODE, "the released evaluation config"),
            "tap": Choice("search", Source.SEED, "section 2, Colorization: the best of several layers"),
            "choose_on": Choice("scored", Source.OURS, "not stated; the best results are reported"),
            **_SHARED,
        },
    ),
    Preset(
        name="native",
        version=3,
        summary="as `paper`, each picture at its own size",
        choices={"size": Choice("native", Source.OURS, "no picture is stretched"), **_SHARED},
    ),
    Preset(
        name="released-code",
        version=2,
        summary="what the released code of MaskContrast does with objects: weighted by logits, PCA, mini-batches",
        choices={
            "size": Choice("512", Source.CODE, "segmentation/utils/common_config.py"),
            "interpolation": Choice("bicubic", Source.CODE, "segmentation/utils/common_config.py"),
            "unit": Choice("object", Source.CODE, "segmentation/utils/kmeans_utils.py: one per picture"),
            "foreground": Choice("auto", Source.CODE, "the saliency head"),
            "background": Choice("saliency", Source.CODE, "K - 1 clusters of objects, and the background"),
            "threshold": Choice(0.5, Source.CODE, "of the raw logit"),
            "pooling": Choice("logit", Source.CODE, "the embedding weighted by the raw logit, not normalised before"),
            "blank": Choice("zero", Source.CODE, "pictures without foreground are clustered too, as zero vectors"),
            "normalize": Choice("l2", Source.CODE, ""),
            "pca": Choice(32, Source.CODE, "fitted on all objects, the full dimension"),
            "whiten": Choice(True, Source.CODE, ""),
            "algorithm": Choice("minibatch", Source.CODE, "batches of 1000"),
            "restarts": Choice(3, Source.CODE, "scikit-learn's default of that time"),
            "first_state": Choice(1234, Source.CODE, "segmentation/kmeans.py: random_state 1234 to 1238"),
            "fit": Choice("eval", Source.CODE, ""),
        },
    ),
)


def settle(settings: ClusterSettings, own_foreground: bool) -> ClusterSettings:
    """The settings with every `auto` but the engine's replaced by what it comes to.

    own_foreground: the method gives a foreground of its own.
    Raises SettingError for settings that contradict each other or the method.
    """
    foreground = settings.foreground
    if foreground == "auto":
        foreground = "adapter" if own_foreground else "none"
    if foreground == "adapter" and not own_foreground:
        raise SettingError(
            "foreground=adapter needs a method with a foreground of its own: give mask files, --set "
            "foreground=masks:NAME"
        )
    unit = settings.unit
    if unit == "auto":
        unit = "object" if foreground != "none" and settings.background != "cluster" else "pixel"
    if unit == "object" and foreground == "none":
        raise SettingError(
            "unit=object needs a foreground, which the method does not give: give mask files, --set "
            "foreground=masks:NAME, or cluster pixels, --set unit=pixel (the preset released-code is for objects only)"
        )
    if unit == "object" and settings.background == "cluster":
        raise SettingError("background=cluster clusters all pixels, foreground or not: drop --set unit=object")
    if settings.background == "saliency" and foreground == "none":
        raise SettingError(
            "background=saliency needs a foreground, which the method does not give: give mask files, --set "
            "foreground=masks:NAME"
        )
    objects = unit == "object"
    background = settings.background
    if background == "auto":
        background = "saliency" if objects or settings.foreground not in ("auto", "none") else "cluster"
    return dataclasses.replace(
        settings,
        foreground=foreground if background == "saliency" else "none",
        unit=unit,
        background=background,
        normalize=settings.normalize if settings.normalize != "auto" else "l2" if objects else "none",
        pca=settings.pca if settings.pca != "auto" else 0 if objects else PIXEL_DIMENSIONS,
    )


def with_effort(settings: Some) -> Some:
    """The settings with those of effort as they are read: 0 for what is not, so that one effort has one record."""
    if settings.algorithm == "minibatch":
        return dataclasses.replace(settings, restarts=MINIBATCH_STARTS, candidates=0, sample=0, passes=0, finished=0)
    starts = max(settings.restarts, 1)
    finished = min(max(settings.finished, 1), starts)
    return dataclasses.replace(
        settings,
        restarts=starts,
        candidates=max(settings.candidates, 1),
        passes=0 if finished == starts else settings.passes,
        finished=finished,
    )


def effort_note(settings: ClusterSettings) -> str:
    """How hard K-means tried, for the reader of a table."""
    settings = with_effort(settings)
    starts = f"K-means: {settings.restarts} start{'s'[: settings.restarts > 1]}"
    if settings.algorithm == "minibatch":
        return f"{starts} by mini-batches of 1,000"
    among = f" among {settings.sample:,} vectors" if settings.sample else ""
    if settings.finished == settings.restarts:
        return f"{starts}{among}, finished on all"
    passes = f"{settings.passes} pass{'es' if settings.passes != 1 else ''}"
    return f"{starts} of {passes}{among}, the best {settings.finished} finished on all"


@dataclass(frozen=True, slots=True)
class Countable:
    """How much there is to cluster, as far as that is known before the first forward pass.

    vectors: of pixels, None for objects or while the method is not built. pictures: where objects are clustered, their
    largest possible number, else None. unit: `vectors` or `pictures`.
    """

    vectors: int | None
    pictures: int | None
    unit: str


def countable(settings: ClusterSettings, scope: Scope, fewest: int) -> Countable:
    """What can be clustered; fewest: the smallest K that is wanted.

    Raises SettingError for settings that contradict each other or the method, and for a K that the background takes up.
    """
    if "choose_on" in scope.explicit and not settings.compares:
        raise SettingError(
            "choose_on says what chooses between several maps, and there is one: name several, e.g. --set tap=search, "
            "or drop it"
        )
    if scope.foreground is None:
        return Countable(None, None, "vectors")
    settled = settle(settings, scope.foreground)
    if settled.background == "saliency" and scope.background and fewest < 2:
        raise SettingError(f"K={fewest} holds nothing but the background: the foreground needs a K of at least 2")
    if settled.unit == "pixel":
        return Countable(scope.vectors, None, "vectors")
    return Countable(None, scope.pictures, "pictures")


def engine_for(settings: ClusterSettings, scope: Scope) -> Engine:
    """The engine that will run: `auto` is faiss, or the chunked torch one on a CUDA machine whose faiss has no GPU.

    Raises MismatchError naming both extras where faiss is wanted and not installed, SettingError for settings of
    Lloyd's algorithm that were given for another.
    """
    from bench import cluster

    if settings.algorithm == "minibatch":
        unread = sorted(scope.explicit & {"engine", "iterations", "tolerance", *EFFORT})
        if unread:
            raise SettingError(
                f"algorithm=minibatch does not read {', '.join(unread)}: drop it, or use algorithm=lloyd"
            )
        return "sklearn"
    if settings.engine not in ("auto", "faiss"):
        return settings.engine
    cluster.require_faiss("K-means needs", "--set engine=sklearn")
    return "torch" if settings.engine == "auto" and cluster.default_engine(scope.device) == "torch" else "faiss"
