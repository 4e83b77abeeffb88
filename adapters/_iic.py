"""IIC's trunk and heads as adapters, for `iic` and `cooccurrence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.backbone import Backbone
from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, MismatchError
from bench.networks.iic import (
    SMALLEST_SIDE,
    TRUNK_TAP,
    IICNetwork,
    Trunk,
    clusters_of,
    iic_from_description,
    network_input,
    trunk_from_description,
    trunk_tap,
)
from bench.records import AdapterRequest, KeyRule, Tap
from bench.weights import Account, architecture_of, in_layout, load_into, seeded

_RELEASED_WIDTH, _RELEASED_CLASSES = 64, 15
_HEAD_A_OVER_B = 3
"""45 over 15 clusters in the network for COCO-Stuff."""

_INFRARED = 4
_RUN_OF_IIC, _RUN_OF_COOCCURRENCE = KeyRule(entry="model"), KeyRule(entry="model", prefix="features.")
"""Checkpoints of the producers."""


class EdgeBackbone(Backbone):
    """A network that reads colour and edges, at sides that are even."""

    def __init__(self, body: nn.Module, *, taps: Sequence[Tap], default_tap: str, account: Account | None) -> None:
        held = account.as_dict() if account else None
        super().__init__(body, taps=taps, default_tap=default_tap, pad_to=2, account=held)

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, H, W) -> float32 (B, 5, H, W), see `bench.networks.iic.network_input`."""
        return network_input(pictures)

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        height, width = inputs.shape[2:]
        if min(height, width) < SMALLEST_SIDE:
            raise MismatchError(
                f"a picture is {height}×{width} at the network's input, expected at least {SMALLEST_SIDE}×"
                f"{SMALLEST_SIDE}: leave it out, or stretch pictures with --size"
            )
        return self.even_maps(inputs, taps)

    def even_maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        return {TRUNK_TAP: self.body(inputs)}


class ClusterBackbone(EdgeBackbone):
    """The trunk's map and the probabilities of the heads asked for."""

    body: IICNetwork

    def even_maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        features = self.body.trunk(inputs)
        wanted = {tap.partition(".")[0] for tap in taps if tap != TRUNK_TAP}
        clustered = self.body.clustered(features, [name for name in self.body.clusters if name in wanted], inputs)
        named = {_tap_name(head, index): one for head, maps in clustered.items() for index, one in enumerate(maps)}
        return {TRUNK_TAP: features, **named}


def build_iic(request: AdapterRequest, *, width: int) -> Backbone:
    """The network of a request, with the heads that its checkpoint holds; width: of the trunk, 0 = the checkpoint's.

    Raises CheckpointError for a file of another width, and for one that reads infrared.
    """
    checkpoint = in_layout(request.checkpoint, _RUN_OF_IIC)
    description = architecture_of(checkpoint)
    with seeded(checkpoint.seed):
        if description is not None:
            _check_width(request, description, width)
            network = iic_from_description(description)
        else:
            clusters, sub_heads = _heads(request)
            network = IICNetwork(clusters, width=width or _RELEASED_WIDTH, sub_heads=sub_heads)
    loaded = load_into(network, checkpoint)
    taps = [trunk_tap(network.trunk), *_head_taps(network)]
    return ClusterBackbone(network, taps=taps, default_tap=taps[1].name, account=loaded)


def _heads(request: AdapterRequest) -> tuple[dict[str, int], int]:
    """K of each head, and the number of sub-heads: those of the file, else those of a random initialisation."""
    path = request.checkpoint.path
    if path is not None:
        state = _state(read_checkpoint(path))
        first = state.get("trunk.features.0.weight")
        if isinstance(first, torch.Tensor) and first.shape[1] == _INFRARED:
            raise CheckpointError(
                f"{path} reads red, green, blue and infrared, as the networks for Potsdam do, and pictures here have "
                "no infrared: give a network for COCO-Stuff"
            )
        clusters, sub_heads = clusters_of(state)
        if clusters:
            return clusters, sub_heads
    classes = request.classes or _RELEASED_CLASSES
    return {"head_A": _HEAD_A_OVER_B * classes, "head_B": classes}, 1


def _state(held: Mapping[str, Any]) -> Mapping[str, Any]:
    net = held.get("net")
    return net if isinstance(net, Mapping) else held


def _head_taps(network: IICNetwork) -> list[Tap]:
    """A map per head and sub-head, head B before head A, at the size of the input."""
    return [
        Tap(name=_tap_name(name, index), channels=network.clusters[name], stride=1, kind="cluster_prob")
        for name in sorted(network.clusters, reverse=True)
        for index in range(network.sub_heads)
    ]


def _tap_name(head: str, index: int) -> str:
    """The first convolution of a head has the head's name, the others a number more."""
    return f"{head}.{index}" if index else head


def build_cooccurrence(request: AdapterRequest, *, width: int) -> Backbone:
    """The trunk of a request; width: 0 = the checkpoint's. Raises CheckpointError for a file of another width."""
    checkpoint = in_layout(request.checkpoint, _RUN_OF_COOCCURRENCE)
    description = architecture_of(checkpoint)
    with seeded(checkpoint.seed):
        if description is not None:
            _check_width(request, description, width)
            trunk = trunk_from_description(description)
        else:
            trunk = Trunk(width or _RELEASED_WIDTH)
    loaded = load_into(trunk, checkpoint)
    return EdgeBackbone(trunk, taps=[trunk_tap(trunk)], default_tap=TRUNK_TAP, account=loaded)


def _check_width(request: AdapterRequest, description: Mapping[str, Any], width: int) -> None:
    if width not in (0, description.get("width")):
        raise CheckpointError(
            f"{request.checkpoint.path} holds a trunk of width {description.get('width')}, not {width}: drop "
            f"--set {request.card.name}.width={width}"
        )
