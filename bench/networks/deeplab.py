"""DeepLab-v3's head without its classifier, in torchvision's key names, and a narrow stand-in for small networks.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587): parallel
convolutions of several dilations and a pooled branch over the same map (ASPP), concatenated and projected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = ["DeepLabHead", "NarrowHead"]


class DeepLabHead(nn.Sequential):
    """float (B, channels, h, w) -> non-negative (B, width, h, w).

    Keys as in torchvision's head up to its classifier: `0` the ASPP, `1` 3×3 convolution, `2` batch norm; `3` is the
    last ReLU. torchvision's and MaskContrast's linear model have their 1×1 classifier at `4`.
    rates: dilations of the ASPP's 3×3 convolutions, in cells of the map. dropout: its probability after the projection.
    """

    def __init__(
        self, channels: int, *, rates: Sequence[int] = (12, 24, 36), width: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__(
            _ASPP(channels, rates, width, dropout),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.width = width


class NarrowHead(nn.Sequential):
    """One 3×3 convolution with batch norm and ReLU: float (B, channels, h, w) -> non-negative (B, width, h, w)."""

    def __init__(self, channels: int, *, width: int = 128) -> None:
        super().__init__(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.width = width


class _ASPP(nn.Module):
    """The parallel branches, concatenated in order 1×1, each rate, pooled, and projected to `width` channels."""

    def __init__(self, channels: int, rates: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        branches: list[nn.Module] = [_branch(channels, width)]
        branches += [_branch(channels, width, rate) for rate in rates]
        branches.append(_PooledBranch(channels, width))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*_branch(len(branches) * width, width), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches: torch.Tensor = self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
        return branches


def _branch(channels: int, width: int, rate: int = 0) -> nn.Sequential:
    """A 3×3 convolution of dilation `rate`, 1×1 where it is 0, with batch norm and ReLU."""
    conv = nn.Conv2d(channels, width, 3 if rate else 1, padding=rate, dilation=max(rate, 1), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


class _PooledBranch(nn.Sequential):
    """The mean over the map through a 1×1 convolution, spread over all cells."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1, bias=False), _PooledBatchNorm(width), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The bilinear resize of a single cell is that cell everywhere.
        pooled = x
        for module in self:
            pooled = module(pooled)
        return pooled.expand(-1, -1, *x.shape[2:])


class _PooledBatchNorm(nn.BatchNorm2d):
    """Batch norm that also works on one picture while training.

    One value per channel has no variance, and torch refuses it: such a batch is normalised with the running
    statistics, and leaves them as they are.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training and input.numel() == input.shape[1]:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)
