"""ResNets with an output stride of 8, 16 or 32, in torchvision's key names and without the classifier.

Source of the dilation rule: DeepLab (Chen et al., TPAMI 2018), in the form used by torchvision
(`replace_stride_with_dilation`) and by MaskContrast (arXiv 2102.06191). A stage that would halve the map further than
the output stride keeps the map's size instead and doubles the dilation of what follows. Its strided 3×3 convolution
still reads a map of the resolution before it and gets half of the stage's dilation, all others the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torchvision
from torch import nn

from bench.records import Tap

__all__ = ["LAYERS", "Arch", "DilatedResNet", "OutputStride", "dilated_resnet"]

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
OutputStride = Literal[8, 16, 32]

LAYERS = ("layer1", "layer2", "layer3", "layer4")
_NATIVE_STRIDES = (4, 8, 16, 32)


class DilatedResNet(nn.Module):
    """The body of a torchvision ResNet, dilated to an output stride.

    body: a torchvision ResNet, of basic blocks or of bottlenecks; its modules are taken over and changed in place.
    taps: the four maps it gives, `layer1` … `layer4`, each after the last ReLU of the stage (non-negative).
    """

    def __init__(self, body: torchvision.models.ResNet, output_stride: OutputStride) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        for name, stride in zip(LAYERS, _NATIVE_STRIDES, strict=True):
            if stride > output_stride:
                _dilate(self.get_submodule(name), stride // output_stride)
        self.taps = tuple(
            Tap(name=name, channels=_width(self.get_submodule(name)), stride=min(stride, output_stride))
            for name, stride in zip(LAYERS, _NATIVE_STRIDES, strict=True)
        )

    def forward(self, inputs: torch.Tensor, taps: Sequence[str] = LAYERS) -> dict[str, torch.Tensor]:
        """Maps (B, D, h, w) of the taps asked for, from float (B, 3, H, W); stops after the deepest of them.

        h = ceil(H / stride), likewise w.
        """
        maps: dict[str, torch.Tensor] = {}
        x = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        for name in LAYERS:
            if len(maps) == len(set(taps)):
                break
            x = self.get_submodule(name)(x)
            if name in taps:
                maps[name] = x
        return maps


def dilated_resnet(arch: Arch, output_stride: OutputStride = 8) -> DilatedResNet:
    """A ResNet body with torchvision's own random initialisation, drawn from torch's global generator.

    With bottlenecks it equals torchvision's `replace_stride_with_dilation` bit for bit; torchvision refuses to dilate
    basic blocks, here they follow the same rule.
    """
    return DilatedResNet(getattr(torchvision.models, arch)(weights=None), output_stride)


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Take the stride out of a stage and dilate its 3×3 convolutions."""
    for conv in _convolutions(stage):
        strided = conv.stride != (1, 1)
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3):
            rate = dilation // 2 if strided else dilation
            conv.dilation = conv.padding = (rate, rate)


def _convolutions(stage: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in stage.modules() if isinstance(module, nn.Conv2d))


def _width(stage: nn.Module) -> int:
    """Channels of a stage's output: its widest convolution is the last one of a block, or one as wide."""
    return max(conv.out_channels for conv in _convolutions(stage))
