"""A saliency network as an estimator: how it reads a picture, and how its output becomes a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bench.backbone import IMAGENET_MEAN, IMAGENET_STD
from bench.checkpoints import read_checkpoint
from bench.records import Checkpoint, EstimatorRequest
from bench.saliency import network_input, stretch_to_bytes
from bench.weights import load_into, seeded

__all__ = ["NetworkEstimator", "first_output", "load", "width_in_file"]

Floats = NDArray[np.float32]
Map = NDArray[np.uint8]


class NetworkEstimator:
    """A network that maps pictures of one size to maps; satisfies `bench.contracts.Estimator`.

    read: a picture, uint8 (H, W, 3) -> float32 (3, S, S). probability: the network's output -> (B, h, w), 0 to 1.
    to_map: one of those as uint8 (h, w), 0 … 255. network: on `device`, in eval mode.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str,
        *,
        read: Callable[[NDArray[np.uint8]], Floats],
        probability: Callable[[Any], torch.Tensor],
        to_map: Callable[[Floats], Map],
    ) -> None:
        self._network, self._device = network, device
        self._read, self._probability, self._to_map = read, probability, to_map

    def prepare(self, picture: NDArray[np.uint8]) -> Floats:
        return self._read(picture)

    def saliency(self, prepared: Sequence[Floats]) -> list[Map]:
        inputs = torch.from_numpy(np.stack(prepared)).to(self._device, memory_format=torch.channels_last)
        with torch.inference_mode():
            values = self._probability(self._network(inputs)).float().cpu().numpy()
        return [self._to_map(each) for each in values]


def first_output(network: nn.Module, request: EstimatorRequest, *, size: int) -> NetworkEstimator:
    """A network of BASNet's and U²-Net's kind: the first of its logit maps counts, input and map are stretched."""
    return NetworkEstimator(
        network,
        request.device,
        read=partial(network_input, size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        probability=lambda logits: torch.sigmoid(logits[0][:, 0]),
        to_map=stretch_to_bytes,
    )


def load(make: Callable[[], nn.Module], request: EstimatorRequest) -> nn.Module:
    """A network on the request's device, with the weights of its checkpoint or a seeded random initialisation."""
    with seeded(request.checkpoint.seed):
        network = make()
    load_into(network, request.checkpoint)
    return network.to(request.device).to(memory_format=torch.channels_last).eval()


def width_in_file(checkpoint: Checkpoint, key: str) -> int | None:
    """The first dimension of the tensor of this name in a checkpoint's file, whatever stands before the name.

    None where there is no file, or no such tensor in it.
    """
    if checkpoint.path is None:
        return None
    found = read_checkpoint(checkpoint.path)
    for state in (found, *(value for value in found.values() if isinstance(value, Mapping))):
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and str(name).endswith(key):
                return int(value.shape[0])
    return None
