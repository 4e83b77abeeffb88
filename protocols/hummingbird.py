"""Dense nearest neighbours in context: cells of the train split are remembered with their labels, and asked.

Balažević et al., "Towards In-Context Scene Understanding" (NeurIPS 2023), whose code is not public; what it leaves open
is that of open-hummingbird. Nothing is trained, and nothing matched: ids are classes. The score depends on the size of
the memory, which stands in the row.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from bench.contracts import Scope, Variant
from bench.errors import SettingError
from bench.records import ProtocolCard

from ._hummingbird import PRESETS, HummingbirdSettings, bytes_a_vector, places, size_text

__all__ = ["CARD", "expand", "price"]

CARD = ProtocolCard(
    name="hummingbird",
    summary="classes of the nearest cells of the train split, weighted by attention; nothing is trained",
    run="bench.protocols._neighbours:run",
    settings=HummingbirdSettings,
    presets=PRESETS,
    seeds=1,
    headline="as_predicted",
    expand="bench.protocols.hummingbird:expand",
    predict="bench.protocols._neighbours:predict",
    price="bench.protocols.hummingbird:price",
    paper="Towards In-Context Scene Understanding (NeurIPS 2023), arXiv 2306.01667",
)


def expand(settings: HummingbirdSettings, scope: Scope) -> list[Variant]:
    """One row; the engine is settled.

    Raises SettingError for a memory that does not fit into the machine and for void as a background that there is not,
    MismatchError where faiss is wanted and not installed.
    """
    if settings.void == "background" and not scope.background:
        raise SettingError(
            "hummingbird.void=background: the data set has no background class for void to count as; take void=leave"
        )
    final = dataclasses.replace(settings, engine=_engine(settings, scope))
    _check_room(final, scope)
    return [Variant(settings=final)]


def _engine(settings: HummingbirdSettings, scope: Scope) -> Literal["faiss", "torch"]:
    if settings.engine == "torch" or (settings.engine == "auto" and scope.device.startswith("cuda")):
        return "torch"
    from bench.cluster import require_faiss

    require_faiss("hummingbird needs", "--set hummingbird.engine=torch")
    return "faiss"


def _check_room(settings: HummingbirdSettings, scope: Scope) -> None:
    vectors, size = _vectors(settings, scope)
    if not vectors:
        return
    from bench.neighbours import room

    there = room(scope.device if settings.engine == "torch" else "cpu")
    if size > there:
        raise SettingError(
            f"a memory of {vectors:,} vectors of width {scope.channels} takes {size_text(size)} with its labels, "
            f"there are {size_text(there)}: ask for fewer with --set hummingbird.memory=N (0: what fits in 2 GB)"
        )


def _vectors(settings: HummingbirdSettings, scope: Scope) -> tuple[int, int]:
    """How many vectors will be remembered at most, and bytes; 0 while that is not known."""
    if scope.train_vectors is None or scope.channels is None:
        return 0, 0
    vectors = min(places(settings, scope.channels, scope.classes), scope.train_vectors)
    return vectors, vectors * bytes_a_vector(scope.channels, scope.classes)


def price(settings: HummingbirdSettings, scope: Scope) -> str:
    """The size of the memory, the forward passes that fill it, and the products of vectors that asking it takes."""
    vectors, size = _vectors(settings, scope)
    products = (scope.vectors or 0) * vectors
    return (
        f"{scope.train or 0} forward passes for the train split, kept in the cache; a memory of {vectors:,} of its "
        f"{scope.train_vectors or 0:,} cells, {size_text(size)}; {products:.1e} products of vectors of width "
        f"{scope.channels}"
    )
