"""The labels themselves as features: the ceiling of every protocol, and a check of the scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.records import AdapterRequest, MethodCard

if TYPE_CHECKING:
    from bench.contracts import Adapter

CARD = MethodCard(
    name="oracle",
    summary="the labels, one-hot, at their own resolution: the ceiling",
    factory="bench.adapters.oracle:build",
    trainable=False,
    taps=("labels",),
    default_tap="labels",
    notes="Void pixels take the label of the nearest pixel that has one; they are not scored.",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter, with one channel per class of the data set."""
    from ._floors import OneHotLabels

    return OneHotLabels(request.classes)
