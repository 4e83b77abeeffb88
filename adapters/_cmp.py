"""The image encoders of conditional motion propagation, rebuilt from their layer tables.

Source of layers, key names and initialisation: Zhan et al., "Self-Supervised Learning via Conditional Motion
Propagation" (arXiv 1903.11412), in the form of the authors' release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torchvision
from torch import nn

from bench.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError
from bench.networks.resnet import LAYERS, DilatedResNet
from bench.records import AdapterRequest, Checkpoint, KeyRule, Tap
from bench.weights import fits_layout, load_into, seeded

MEAN = tuple(255 * value for value in IMAGENET_MEAN)
STD = tuple(255 * value for value in IMAGENET_STD)
"""Of pictures in 0 … 255, which the authors do not divide: the same values as others give the network."""

Arch = Literal["resnet50", "alexnet", "alexnet_8x"]

_WIDTH = 256
"""Channels of the encoders' output, which the motion decoder reads."""


class ResNetEncoder(DilatedResNet):
    """ResNet-50 at an output stride of 8, in which every 3×3 convolution of a dilated stage is dilated alike.

    Others give the first of a stage half the dilation (see `bench.networks.resnet`), so their weights do not mean the
    same here. taps: `layer1` … `layer4`, and `conv5`, the output that the motion decoder reads (of both signs).
    """

    def __init__(self) -> None:
        super().__init__(torchvision.models.resnet50(weights=None), 8)
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            first = stage[0].conv2
            first.dilation = first.padding = (dilation, dilation)
        deepest = self.taps[-1]
        self.conv5 = nn.Conv2d(deepest.channels, _WIDTH, 1)
        self.taps = (*self.taps, Tap(name="conv5", channels=_WIDTH, stride=deepest.stride))

    def forward(self, inputs: torch.Tensor, taps: Sequence[str] = LAYERS) -> dict[str, torch.Tensor]:
        """Maps (B, D, h, w) of the taps asked for, from float (B, 3, H, W); stops after the deepest of them.

        h = ceil(H / stride), likewise w.
        """
        if "conv5" not in taps:
            return super().forward(inputs, taps)
        maps = super().forward(inputs, sorted({*taps, "layer4"} - {"conv5"}))
        maps["conv5"] = self.conv5(maps["layer4"])
        return maps


class AlexNetEncoder(nn.Module):
    """AlexNet with batch norm and its fully connected layers as convolutions.

    output_stride: 32, as it is trained; 8 halves the first stride and drops the last, with the same weights and no
        dilation, so that every layer sees a smaller part of the picture.
    taps: `conv1` … `conv5`, `fc6` and `fc7` after their ReLU, `pool5`, and `conv8`, the output that the motion decoder
        reads (of both signs).
    """

    def __init__(self, output_stride: Literal[8, 32] = 32) -> None:
        super().__init__()
        first, last = (4, 2) if output_stride == 32 else (2, 1)
        self.conv1 = _layer(3, 96, 11, stride=first)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _layer(96, 256, 5)
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv3 = _layer(256, 384, 3)
        self.conv4 = _layer(384, 384, 3)
        self.conv5 = _layer(384, 256, 3)
        self.pool5 = nn.MaxPool2d(3, stride=last, padding=1)
        self.fc6 = _layer(256, 4096, 3)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = _layer(4096, 4096, 1)
        self.drop7 = nn.Dropout(0.5)
        self.conv8 = nn.Conv2d(4096, _WIDTH, 1)
        channels = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "pool5": 256}
        channels |= {"fc6": 4096, "fc7": 4096, "conv8": _WIDTH}
        strides = {"conv1": first, "conv2": 2 * first, "conv3": 4 * first, "conv4": 4 * first, "conv5": 4 * first}
        self.taps = tuple(
            Tap(name=name, channels=width, stride=strides.get(name, output_stride)) for name, width in channels.items()
        )
        _initialise(self)

    def forward(self, inputs: torch.Tensor, taps: Sequence[str]) -> dict[str, torch.Tensor]:
        """Maps (B, D, h, w) of the taps asked for, from float (B, 3, H, W); stops after the deepest of them.

        h = ceil(H / stride), likewise w.
        """
        maps: dict[str, torch.Tensor] = {}
        x = inputs
        for name, layer in self.named_children():
            if len(maps) == len(set(taps)):
                break
            x = layer(x)
            if name in taps:
                maps[name] = x
        return maps


def _layer(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with bias, padded by half its kernel, then batch norm and ReLU."""
    conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _initialise(network: nn.Module) -> None:
    """The release's own: uniform within ± sqrt(2 / (output channels · kernel area)), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class CMPBackbone(Backbone):
    """An encoder of CMP that stops after the deepest tap asked for."""

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        maps: Mapping[str, torch.Tensor] = self.body(inputs, taps)
        return maps


def build_cmp(
    request: AdapterRequest, *, arch: Arch | Literal["auto"], layouts: Mapping[str, Sequence[KeyRule]]
) -> CMPBackbone:
    """The encoder of a request, with the weights of its checkpoint or a seeded random initialisation.

    arch: `auto` is what the checkpoint holds, ResNet-50 where it holds no known one. layouts: of ResNet-50's files
    (`resnet50`) and of AlexNet's (`alexnet`).
    Raises CheckpointError for a file that holds the other architecture.
    """
    held = _held(request.checkpoint, layouts)
    if arch == "auto":
        arch = "alexnet" if held == "alexnet" else "resnet50"
    elif held and not arch.startswith(held):
        raise CheckpointError(
            f"{request.checkpoint.path} holds CMP's {held}, not {arch}: drop --set {request.card.name}.arch={arch}"
        )
    with seeded(request.checkpoint.seed):
        encoder = ResNetEncoder() if arch == "resnet50" else AlexNetEncoder(8 if arch == "alexnet_8x" else 32)
    loaded = load_into(encoder, request.checkpoint)
    return CMPBackbone(
        encoder,
        taps=encoder.taps,
        default_tap="layer4" if arch == "resnet50" else "conv5",
        mean=MEAN,
        std=STD,
        scale=1.0,
        account=loaded.as_dict() if loaded else None,
    )


def _held(checkpoint: Checkpoint, layouts: Mapping[str, Sequence[KeyRule]]) -> str:
    """Which architecture a file holds in one of the authors' layouts, "" for none.

    Names alone decide: a file of another width is then held against its own architecture.
    """
    if checkpoint.path is None:
        return ""
    found = read_checkpoint(checkpoint.path)
    named = {arch: [_of_any_size(rule) for rule in rules] for arch, rules in layouts.items()}
    return next((arch for arch, rules in named.items() if any(fits_layout(found, rule) for rule in rules)), "")


def _of_any_size(rule: KeyRule) -> KeyRule:
    return replace(rule, probe=tuple((key, (-1,) * len(shape)) for key, shape in rule.probe))
