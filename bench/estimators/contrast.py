"""Colour contrast against what is connected to the picture's border: a classical estimator that needs no weights.

Zhu et al., "Saliency Optimization from Robust Background Detection", CVPR 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import EstimatorCard, EstimatorRequest
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastOptions:
    """side, segments, compactness: of the superpixels. colour, space, boundary, smoothness: scales of the method.

    Values are the paper's where it gives them (colour, space, boundary, smoothness), else ours.
    """

    side: int = setting(300, "longest side in pixels at which superpixels are cut", minimum=32)
    segments: int = setting(250, "superpixels, about", minimum=16)
    compactness: float = setting(20.0, "of superpixels: more is squarer (SLIC)", minimum=0.01)
    colour: float = setting(10.0, "colours this far apart (CIE Lab) are different", minimum=0.1)
    space: float = setting(0.25, "how far contrast reaches, as a share of the longest side", minimum=0.01)
    boundary: float = setting(1.0, "boundary connectivity above which a superpixel is background", minimum=0.01)
    smoothness: float = setting(0.1, "how much neighbours of any colour are drawn together", minimum=0)
    level: Literal["otsu", "none"] = setting(
        "otsu",
        "bend the map so that its own Otsu threshold lies at one half; none: from its least to its largest value",
    )


CARD = EstimatorCard(
    name="contrast",
    summary="colour contrast with boundary connectivity on superpixels: no weights, no training",
    factory="bench.estimators.contrast:build",
    paper="Zhu et al., Saliency Optimization from Robust Background Detection, CVPR 2014",
    trainable=False,
    options=ContrastOptions,
    notes="Finds things that differ from the picture's border in colour; it knows nothing of objects.",
)


def build(request: EstimatorRequest) -> Estimator:
    """The estimator; the request's checkpoint and device are not read."""
    from ._contrast import Contrast

    return Contrast(request.options)
