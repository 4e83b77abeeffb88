"""DeepUSPS's network as an estimator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bench.images import resize_picture
from bench.networks.drn import DeepUSPSNetwork
from bench.records import EstimatorRequest

from ._network import NetworkEstimator, load

__all__ = ["build_deepusps"]

INPUT = 432
"""Side of the network's input in pixels (DeepUSPS.py of the repository)."""


def build_deepusps(request: EstimatorRequest, mean: Sequence[float], std: Sequence[float]) -> NetworkEstimator:
    """mean, std: of the three channels of pictures 0 to 1. The probability itself is the map, it is not stretched."""

    def read(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = resize_picture(picture, (INPUT, INPUT), "bicubic") / 255
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1), dtype=np.float32)

    def to_map(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
        return (probability * 255).astype(np.uint8)

    return NetworkEstimator(
        load(DeepUSPSNetwork, request),
        request.device,
        read=read,
        probability=lambda logits: torch.softmax(logits, 1)[:, 0],
        to_map=to_map,
    )
