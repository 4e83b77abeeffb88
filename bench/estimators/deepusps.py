"""DeepUSPS: a saliency network learnt from the maps of classical estimators.

Code: https://github.com/sally20921/DeepUSPS. Neither its weights nor its picture statistics were released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import SettingError
from bench.records import EstimatorCard, EstimatorRequest
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Estimator


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepUSPSOptions:
    """mean, std: per channel, of pictures 0 to 1."""

    mean: tuple[float, ...] = setting(
        (0.485, 0.456, 0.406), "per channel; the original's are not released, these are ImageNet's"
    )
    std: tuple[float, ...] = setting((0.229, 0.224, 0.225), "per channel; likewise")


CARD = EstimatorCard(
    name="deepusps",
    summary="DeepUSPS, a saliency network learnt without labels of saliency (no weights were released: bring a file)",
    factory="bench.estimators.deepusps:build",
    paper=(
        "Nguyen et al., DeepUSPS: Deep Robust Unsupervised Saliency Prediction With Self-Supervision, NeurIPS 2019, "
        "arXiv 1909.13055"
    ),
    options=DeepUSPSOptions,
    notes=(
        "Not released: the weights, and the mean and std of its input (ImageNet's stand in: --set deepusps.mean=…, "
        "deepusps.std=…). A file that its training code wrote is read by its path. Training a saliency network is out "
        "of scope here; basnet@unsupervised learnt from DeepUSPS's masks. Left out: the dense CRF of its test script. "
        "Its body starts from Cityscapes labels."
    ),
)


def build(request: EstimatorRequest) -> Estimator:
    """The estimator, with the weights of a file or a seeded random initialisation.

    Raises SettingError where mean or std are not of three channels.
    """
    from ._deepusps import build_deepusps

    options: DeepUSPSOptions = request.options
    if len(options.mean) != 3 or len(options.std) != 3 or min(options.std) <= 0:
        raise SettingError(
            f"deepusps.mean={options.mean} and deepusps.std={options.std} do not fit: expected three numbers each, "
            "std above 0"
        )
    return build_deepusps(request, options.mean, options.std)
