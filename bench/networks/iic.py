"""The networks of IIC's segmentation, and the stand-in for Co-Occurrence that its authors compared it with.

Source: Ji et al., "Invariant Information Clustering for Unsupervised Image Classification and Segmentation" (ICCV 2019,
arXiv 1807.06653) and its released code; names and shapes of all tensors are those of the released checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bench.errors import CheckpointError
from bench.records import Tap

__all__ = [
    "SMALLEST_SIDE",
    "TRUNK_TAP",
    "CooccurrenceNetwork",
    "IICNetwork",
    "Trunk",
    "clusters_of",
    "iic_from_description",
    "network_input",
    "trunk_from_description",
    "trunk_tap",
    "with_edges",
]

CHANNELS = 5
"""Blue, green, red and the two edge maps."""

SMALLEST_SIDE = 10
"""Pixels: smaller pictures leave no cell of the trunk's map."""

TRUNK_TAP = "trunk"

_STRIDE, _OFFSET = 2, 4
"""The pool halves the map, and each of the two dilated convolutions takes a cell off every side."""

_GREY = (0.299, 0.587, 0.114)
_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


# --- input -------------------------------------------------------------------------------------------------


def with_edges(colour: torch.Tensor, grey: torch.Tensor) -> torch.Tensor:
    """Colour (B, 3, H, W) and two edge maps of grey (B, 1, H, W): float (B, 5, H, W).

    The edges are Sobel's, horizontal first, as correlations with zeros around the picture; the left or upper side
    counts positive.
    """
    kernel = torch.tensor(_SOBEL, dtype=grey.dtype, device=grey.device)
    edges = functional.conv2d(grey, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return torch.cat([colour, edges], dim=1)


def network_input(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 RGB (B, 3, H, W) -> float32 (B, 5, H, W): blue, green, red in [0, 1] and the edges of grey.

    The released networks were trained on pictures as OpenCV reads them, blue first, while grey was made with the
    weights of red, green and blue in this order: blue counts as red and red as blue. Networks of our own keep that.
    """
    colour = pictures.to(torch.float32).flip(1) / 255
    weights = torch.tensor(_GREY, device=colour.device).view(-1, 1, 1)
    return with_edges(colour, (colour * weights).sum(1, keepdim=True))


# --- networks ----------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """float (B, 5, H, W), sides even -> non-negative (B, 8 · width, H / 2 - 4, W / 2 - 4).

    Six 3×3 convolutions with batch norm and ReLU, the last two dilated by 2 but padded by 1. width: channels of the
    first one; 64 as released. Initialised as by He et al. (arXiv 1502.01852), by fan-in.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(CHANNELS, width),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 4 * width),
            *_convolution(4 * width, 4 * width),
            *_convolution(4 * width, 8 * width, dilation=2),
            *_convolution(8 * width, 8 * width, dilation=2),
        )
        self.channels = 8 * width
        _initialise(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.features(inputs)
        return features


def trunk_tap(trunk: Trunk) -> Tap:
    """Where the cells of a trunk's map lie: cell (i, j) covers the input pixels from 2 (i + 2), 2 (j + 2) on."""
    return Tap(name=TRUNK_TAP, channels=trunk.channels, stride=_STRIDE, offset=_OFFSET)


class ClusterHead(nn.Module):
    """Probabilities of clusters from the trunk's map, by one 1×1 convolution or by several side by side.

    The convolution pads the map by a ring of zeros, where all clusters are equally likely.
    """

    def __init__(self, channels: int, clusters: int, sub_heads: int = 1) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, clusters, 1, padding=1, bias=False), nn.Softmax2d())
            for _ in range(sub_heads)
        )
        _initialise(self)

    def forward(self, features: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
        """(B, K, H, W) of each convolution at the size of the input: the probabilities are resized, not the logits."""
        return [
            functional.interpolate(head(features), size, mode="bilinear", align_corners=False) for head in self.heads
        ]


class IICNetwork(nn.Module):
    """The trunk and its heads.

    clusters: K of each head by its name: `head_A` (over-clustering) and `head_B`, or `head` alone.
    width: of the trunk. sub_heads: convolutions of each head.
    """

    def __init__(self, clusters: Mapping[str, int], *, width: int = 64, sub_heads: int = 1) -> None:
        super().__init__()
        self.clusters, self.width, self.sub_heads = dict(clusters), width, sub_heads
        self.trunk = Trunk(width)
        for name, number in clusters.items():
            self.add_module(name, ClusterHead(self.trunk.channels, number, sub_heads))

    def forward(self, inputs: torch.Tensor, heads: Sequence[str]) -> dict[str, list[torch.Tensor]]:
        """Maps of the heads asked for, each (B, K, H, W) of probabilities, from float (B, 5, H, W)."""
        return self.clustered(self.trunk(inputs), heads, inputs)

    def clustered(
        self, features: torch.Tensor, heads: Sequence[str], inputs: torch.Tensor
    ) -> dict[str, list[torch.Tensor]]:
        """The same from the trunk's map of `inputs`."""
        size = (inputs.shape[2], inputs.shape[3])
        return {name: self.get_submodule(name)(features, size) for name in heads}

    def describe(self) -> dict[str, Any]:
        """The architecture as plain data, for a checkpoint to name; `iic_from_description` builds it again."""
        return {"network": "iic", "clusters": self.clusters, "width": self.width, "sub_heads": self.sub_heads}


def iic_from_description(description: Mapping[str, Any]) -> IICNetwork:
    """The network, with random weights, that `describe` tells of; CheckpointError where it tells of another one."""
    return IICNetwork(**_described(description, "iic", {"clusters", "width", "sub_heads"}))


_HEAD_KEY = re.compile(r"(?:^|\.)(head(?:_[AB])?)\.heads\.(\d+)\.0\.weight$")


def clusters_of(state: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    """The K of each head that a state dict holds, under any prefix, and the number of sub-heads."""
    clusters: dict[str, int] = {}
    sub_heads = 0
    for key, value in state.items():
        if found := _HEAD_KEY.search(key):
            clusters[found[1]] = int(value.shape[0])
            sub_heads = max(sub_heads, 1 + int(found[2]))
    return clusters, sub_heads


class CooccurrenceNetwork(nn.Module):
    """Whether two patches of a picture are neighbours: the trunk, and a head that is not needed afterwards.

    It is the network (`SegmentationNet10aIsola`) that IIC's authors compared theirs with, not that of Isola et al.
    (arXiv 1511.06811), of which no code is public.
    side: of the patches in input pixels. width: of the trunk. branch: channels that each patch is brought to, and width
    of the layer that joins both. dropout: its probability after that layer.
    """

    def __init__(self, side: int = 11, *, width: int = 64, branch: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        self._description = {"side": side, "width": width, "branch": branch, "dropout": dropout}
        self.side = side
        self.features = Trunk(width)
        self.isola_head = _PairHead(self.features.channels, side, branch, dropout)

    def penultimate(self, inputs: torch.Tensor) -> torch.Tensor:
        """The trunk's map (B, D, H, W) at the size of the input (B, 5, H, W), bilinear."""
        size = (inputs.shape[2], inputs.shape[3])
        return functional.interpolate(self.features(inputs), size, mode="bilinear", align_corners=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Logits (B,), above 0 for neighbours, of patches (B, D, side, side) of the penultimate map."""
        logits: torch.Tensor = self.isola_head(first, second)
        return logits

    def describe(self) -> dict[str, Any]:
        """The architecture as plain data, for a checkpoint to name."""
        return {"network": "cooccurrence", **self._description}


class _PairHead(nn.Module):
    """Both patches through one convolution, then together through two linear layers."""

    def __init__(self, channels: int, side: int, width: int, dropout: float) -> None:
        super().__init__()
        self.siamese_branch = nn.Sequential(*_convolution(channels, width))
        self.joint = nn.Sequential(
            nn.Linear(2 * width * side * side, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, 1)
        )
        _initialise(self)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([self.siamese_branch(patch).flatten(1) for patch in (first, second)], dim=1)
        logits: torch.Tensor = self.joint(seen)
        return logits.squeeze(1)


def _convolution(inputs: int, outputs: int, dilation: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, dilation=dilation, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _initialise(module: nn.Module) -> None:
    """As the released code begins; batch norms begin as torch has them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            nn.init.zeros_(part.bias)


def trunk_from_description(description: Mapping[str, Any]) -> Trunk:
    """The trunk, with random weights, of the network that `CooccurrenceNetwork.describe` tells of."""
    known = _described(description, "cooccurrence", {"side", "width", "branch", "dropout"})
    return Trunk(known["width"])


def _described(description: Mapping[str, Any], network: str, keys: set[str]) -> dict[str, Any]:
    """The architecture's own values; CheckpointError where they are not those of `network`."""
    if description.get("network") != network or set(description) != {"network", *keys}:
        raise CheckpointError(
            f"the architecture {dict(description)} is not one of {network}; expected network={network} and "
            f"{', '.join(sorted(keys))}; give a checkpoint that this version wrote"
        )
    return {key: description[key] for key in keys}
