"""K-means with as many clusters as classes, matched one to one.

Supplement of arXiv 2102.06191, section 4: features are clustered, the assignments brought to the original resolution
and matched with the classes by a Hungarian algorithm; the average of five runs is reported. For a method that clusters
by itself (IIC) "no specific post-processing is required": its clusters are matched as they are.
"""

from __future__ import annotations

import dataclasses

from bench.contracts import Scope, Variant
from bench.errors import SettingError
from bench.records import ProtocolCard

from ._settings import PRESETS, ClusterSettings, Engine, countable, engine_for, with_effort

__all__ = ["CARD", "expand"]

CARD = ProtocolCard(
    name="kmeans",
    summary="K-means with K = number of classes, one-to-one matching",
    run="bench.protocols._layers:one_to_one",
    settings=ClusterSettings,
    presets=PRESETS,
    kinds=("cluster_prob", "feature"),
    headline="one_to_one_iou",
    layers=True,
    expand="bench.protocols.kmeans:expand",
    predict="bench.protocols._layers:predict",
    paper="Unsupervised Semantic Segmentation by Contrasting Object Mask Proposals (ICCV 2021), supplement, section 4",
)


def expand(settings: ClusterSettings, scope: Scope) -> list[Variant]:
    """One row. K = number of classes is cut to the number of vectors, and said; a K that was asked for is not.

    How many objects there are is known only when all pictures were looked at: their K is cut then. A map of the
    network's own clusters has their K, whatever the number of classes, and is matched as it is.
    """
    if scope.own_clusters is not None:
        return [_own_clusters(settings, scope.own_clusters, scope.device)]
    wanted = settings.clusters or scope.classes
    notes: tuple[str, ...] = ()
    clusters = wanted
    found = countable(settings, scope, wanted)
    if found.vectors is not None and wanted > found.vectors:
        if settings.clusters:
            raise SettingError(
                f"kmeans.clusters={wanted} is more than the {found.vectors} vectors of the split: ask for at most that "
                "many, or use more or larger pictures"
            )
        clusters = found.vectors
        notes = (f"K was cut from {wanted} classes to {clusters}, the number of vectors",)
    final = dataclasses.replace(
        with_effort(settings),
        clusters=clusters,
        engine=engine_for(settings, scope),
        whiten=settings.whiten and settings.pca != 0,
    )
    return [Variant(settings=final, notes=notes)]


def _own_clusters(settings: ClusterSettings, clusters: int, device: str) -> Variant:
    """The row of a map of the network's own clusters; SettingError for a K or a foreground that would change them."""
    from bench.cluster import default_engine

    asked = [f"clusters={settings.clusters}"] if settings.clusters not in (0, clusters) else []
    asked += [f"foreground={settings.foreground}"] if settings.foreground not in ("auto", "none") else []
    asked += ["unit=object"] if settings.unit == "object" else []
    asked += ["background=saliency"] if settings.background == "saliency" else []
    if asked:
        raise SettingError(
            f"{', '.join(asked)} does not go with a map of {clusters} clusters that the network made itself: drop it, "
            "or cluster a map of features, --set kmeans.tap=NAME"
        )
    note = f"the network's own {clusters} clusters, the likeliest of each pixel: matched only, without K-means"
    # no engine is read, but that of the other methods' rows puts the figures into one column
    engine: Engine = default_engine(device) if settings.engine == "auto" else settings.engine
    settings = dataclasses.replace(settings, clusters=clusters, engine=engine)
    return Variant(settings=settings, notes=(note,), seeded=False)
