"""ResNet-50 bodies in torchvision's layout, as adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from bench.networks.resnet import dilated_resnet
from bench.records import AdapterRequest
from bench.weights import load_into, normalised_as, seeded

from ._resnet_card import DEFAULT_TAP, ResNetOptions


class ResNetBackbone(Backbone):
    """A `bench.networks.resnet.DilatedResNet` that stops after the deepest tap asked for."""

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        maps: Mapping[str, torch.Tensor] = self.body(inputs, taps)
        return maps


def build_resnet50(
    request: AdapterRequest, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Backbone:
    """The ResNet-50 of a request: dilated, with the weights of its checkpoint or a seeded random initialisation."""
    options: ResNetOptions = request.options
    with seeded(request.checkpoint.seed):
        body = dilated_resnet("resnet50", options.output_stride)
    loaded = load_into(body, request.checkpoint, likely=_likely)
    account = loaded.as_dict() if loaded else {}
    if loaded and loaded.rule not in request.checkpoint.rules:
        account |= normalised_as(request.checkpoint, request.card.name, mean, std)
    return ResNetBackbone(
        body,
        taps=body.taps,
        default_tap=DEFAULT_TAP,
        mean=mean,
        std=std,
        account=account,
    )


def _likely(state: Mapping[str, Any]) -> str:
    """What timm calls the ResNet of a file; timm takes a second to come, so only where a file does not fit."""
    from ._timm import likely_network

    return likely_network("resnet50", state)
