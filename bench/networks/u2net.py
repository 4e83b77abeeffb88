"""U²-Net: a U-shaped network whose stages are small U-shaped networks themselves.

Source: Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition
2020, arXiv 2005.09007. Names and shapes of all tensors are those of the released files
(https://github.com/xuebinqin/U-2-Net).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ARCHS", "Arch", "U2Net"]

Arch = Literal["u2net", "u2netp"]
ARCHS: tuple[Arch, ...] = get_args(Arch)

_DEPTHS = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}
"""Levels of each stage."""

_DILATED = {"5", "6", "5d"}

_WIDTHS: dict[Arch, dict[str, tuple[int, int, int]]] = {
    "u2net": {
        "1": (3, 32, 64),
        "2": (64, 32, 128),
        "3": (128, 64, 256),
        "4": (256, 128, 512),
        "5": (512, 256, 512),
        "6": (512, 256, 512),
        "5d": (1024, 256, 512),
        "4d": (1024, 128, 256),
        "3d": (512, 64, 128),
        "2d": (256, 32, 64),
        "1d": (128, 16, 64),
    },
    "u2netp": {name: (3 if name == "1" else 128 if name.endswith("d") else 64, 16, 64) for name in _DEPTHS},
}
"""Channels into, inside and out of each stage."""

_SIDES = ("1d", "2d", "3d", "4d", "5d", "6")
"""The stages that the six side outputs read, from fine to coarse."""


class U2Net(nn.Module):
    """float (B, 3, H, W) of any size -> seven logit maps (B, 1, H, W).

    The first is fused from the other six, and what its authors evaluate; those come from fine to coarse.
    arch: `u2net` (44,009,869 parameters) or the narrow `u2netp` (1,131,181).
    """

    def __init__(self, arch: Arch = "u2net") -> None:
        super().__init__()
        widths = _WIDTHS[arch]
        for name, depth in _DEPTHS.items():
            self.add_module(f"stage{name}", _Nested(*widths[name], depth, dilated=name in _DILATED))
        for number, name in enumerate(_SIDES, 1):
            self.add_module(f"side{number}", nn.Conv2d(widths[name][2], 1, 3, padding=1))
        self.outconv = nn.Conv2d(len(_SIDES), 1, 1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: dict[str, torch.Tensor] = {}
        x = pictures
        for name in ("1", "2", "3", "4", "5", "6"):
            maps[name] = self.get_submodule(f"stage{name}")(x)
            x = _halved(maps[name])
        x = maps["6"]
        for name in ("5", "4", "3", "2", "1"):
            joined = torch.cat((_resized(x, maps[name]), maps[name]), 1)
            x = maps[f"{name}d"] = self.get_submodule(f"stage{name}d")(joined)
        sides = [self.get_submodule(f"side{number}")(maps[name]) for number, name in enumerate(_SIDES, 1)]
        sides = [_resized(side, sides[0]) for side in sides]
        return (self.outconv(torch.cat(sides, 1)), *sides)


class _Unit(nn.Module):
    """3×3 convolution, batch norm, ReLU."""

    def __init__(self, before: int, after: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


class _Nested(nn.Module):
    """A U-shaped network (B, before, H, W) -> (B, after, H, W), added to its own first unit's map.

    dilated: all levels keep the size of the map and see further by dilation, instead of shrinking it by pooling.
    """

    def __init__(self, before: int, inside: int, after: int, depth: int, *, dilated: bool) -> None:
        super().__init__()
        self.depth, self.dilated = depth, dilated
        rates = [2**level for level in range(depth)] if dilated else [1] * (depth - 1) + [2]
        self.rebnconvin = _Unit(before, after)
        for level, rate in enumerate(rates, 1):
            self.add_module(f"rebnconv{level}", _Unit(after if level == 1 else inside, inside, rate))
        for level in range(depth - 1, 0, -1):
            self.add_module(f"rebnconv{level}d", _Unit(2 * inside, after if level == 1 else inside, rates[level - 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.rebnconvin(x)
        skips = [self.get_submodule("rebnconv1")(first)]
        for level in range(2, self.depth + 1):
            x = skips[-1] if self.dilated or level == self.depth else _halved(skips[-1])
            skips.append(self.get_submodule(f"rebnconv{level}")(x))
        x = skips.pop()
        for level in range(self.depth - 1, 0, -1):
            skip = skips.pop()
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat((_resized(x, skip), skip), 1))
        added: torch.Tensor = x + first
        return added


def _halved(x: torch.Tensor) -> torch.Tensor:
    return functional.max_pool2d(x, 2, ceil_mode=True)


def _resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x.shape[2:] == like.shape[2:]:
        return x
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
