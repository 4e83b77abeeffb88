"""BASNet: a ResNet-34 encoder with a wide decoder, and a small network that refines its map.

Source: Qin et al., "BASNet: Boundary-Aware Salient Object Detection", CVPR 2019. Names and shapes of all tensors are
those of the released file (https://github.com/xuebinqin/BASNet).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

__all__ = ["BASNet"]

_ENCODER = ((64, 64, 3), (64, 128, 4), (128, 256, 6), (256, 512, 3))
"""Channels in and out and blocks of encoder1 … encoder4, which are the four layers of a ResNet-34."""

_STAGES = {
    "bg": ((512, 512, 512, 512), (2, 2, 2)),
    "6d": ((1024, 512, 512, 512), (1, 2, 2)),
    "5d": ((1024, 512, 512, 512), (1, 1, 1)),
    "4d": ((1024, 512, 512, 256), (1, 1, 1)),
    "3d": ((512, 256, 256, 128), (1, 1, 1)),
    "2d": ((256, 128, 128, 64), (1, 1, 1)),
    "1d": ((128, 64, 64, 64), (1, 1, 1)),
}
"""Channels before, between and after the three convolutions of a stage, and their dilations; "bg" is the bridge."""

_PARTS = ("1", "m", "2")
_SIDES = {"1": 64, "2": 64, "3": 128, "4": 256, "5": 512, "6": 512, "b": 512}
"""Channels that each side output reads; "b" is the bridge's."""


class BASNet(nn.Module):
    """float (B, 3, H, W), H and W multiples of 32 -> eight logit maps (B, 1, H, W).

    They are the refined map, which is what its authors evaluate, then those of the decoder from fine to coarse and of
    the bridge. 87,060,360 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inconv = nn.Conv2d(3, 64, 3, padding=1)
        self.inbn = nn.BatchNorm2d(64)
        for number, (before, width, count) in enumerate(_ENCODER, 1):
            self.add_module(f"encoder{number}", _encoder(before, width, count))
        for level in (5, 6):
            for block in (1, 2, 3):
                self.add_module(f"resb{level}_{block}", BasicBlock(512, 512))
        for name, (widths, dilations) in _STAGES.items():
            for part, before, after, dilation in zip(_PARTS, widths, widths[1:], dilations, strict=False):
                self.add_module(f"conv{name}_{part}", _conv(before, after, dilation))
                self.add_module(f"bn{name}_{part}", nn.BatchNorm2d(after))
        for name, width in _SIDES.items():
            self.add_module(f"outconv{name}", _conv(width, 1))
        self.refunet = _Refinement()

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        skips = [functional.relu(self.inbn(self.inconv(pictures)))]
        for number in range(1, 5):
            skips.append(self.get_submodule(f"encoder{number}")(skips[-1]))
        for level in (5, 6):
            x = functional.max_pool2d(skips[-1], 2, ceil_mode=True)
            for block in (1, 2, 3):
                x = self.get_submodule(f"resb{level}_{block}")(x)
            skips.append(x)

        x = self._stage("bg", skips[6])
        sides = [_enlarged(self.get_submodule("outconvb")(x), 32)]
        for level in range(6, 0, -1):
            above = x if level == 6 else _enlarged(x, 2)
            x = self._stage(f"{level}d", torch.cat((above, skips[level]), 1))
            sides.append(_enlarged(self.get_submodule(f"outconv{level}")(x), 2 ** (level - 1)))
        coarse = sides[::-1]
        return (self.refunet(coarse[0]), *coarse)

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for part in _PARTS:
            x = functional.relu(self.get_submodule(f"bn{name}_{part}")(self.get_submodule(f"conv{name}_{part}")(x)))
        return x


class _Refinement(nn.Module):
    """A U-shaped network on the decoder's logits (B, 1, H, W); what it gives is added to them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv0 = _conv(1, width)
        for level in range(1, 6):
            self.add_module(f"conv{level}", _conv(width, width))
            self.add_module(f"bn{level}", nn.BatchNorm2d(width))
        for level in range(4, 0, -1):
            self.add_module(f"conv_d{level}", _conv(2 * width, width))
            self.add_module(f"bn_d{level}", nn.BatchNorm2d(width))
        self.conv_d0 = _conv(width, 1)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        x, skips = self.conv0(logits), []
        for level in range(1, 5):
            skips.append(self._unit(f"{level}", x))
            x = functional.max_pool2d(skips[-1], 2, ceil_mode=True)
        x = self._unit("5", x)
        for level in range(4, 0, -1):
            x = self._unit(f"_d{level}", torch.cat((_enlarged(x, 2), skips[level - 1]), 1))
        refined: torch.Tensor = logits + self.conv_d0(x)
        return refined

    def _unit(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x)))


def _conv(before: int, after: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)


def _encoder(before: int, width: int, count: int) -> nn.Sequential:
    """Basic blocks, of which the first halves the map where the width changes."""
    if before == width:
        first = BasicBlock(width, width)
    else:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))
        first = BasicBlock(before, width, 2, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(count - 1)))


def _enlarged(x: torch.Tensor, factor: int) -> torch.Tensor:
    if factor == 1:
        return x
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
