"""DRN-D-105, and DeepUSPS's saliency head on it.

Sources: Yu et al., "Dilated Residual Networks", CVPR 2017, arXiv 1705.09914; Nguyen et al., "DeepUSPS: Deep Robust
Unsupervised Saliency Prediction With Self-Supervision", NeurIPS 2019, arXiv 1909.13055. Names and shapes of all tensors
are those that DeepUSPS's training code writes; no such file was released.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

__all__ = ["DeepUSPSNetwork", "drn_d_105"]

_BLOCKS = ((64, 3, 2, 1), (128, 4, 2, 1), (256, 23, 1, 2), (512, 3, 1, 4))
"""Width, number, stride of the first and dilation of the bottlenecks of levels 3 to 6."""

_STRIDE = 8
_CLASSES = 2


class DeepUSPSNetwork(nn.Module):
    """float (B, 3, H, W), H and W multiples of 8 -> logits (B, 2, H, W), of which channel 0 is "salient"."""

    def __init__(self) -> None:
        super().__init__()
        self.base = drn_d_105()
        self.seg = nn.Conv2d(512, _CLASSES, 1)
        self.up = nn.ConvTranspose2d(
            _CLASSES, _CLASSES, 2 * _STRIDE, stride=_STRIDE, padding=_STRIDE // 2, groups=_CLASSES, bias=False
        )
        with torch.no_grad():
            self.up.weight.copy_(_bilinear(_STRIDE))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.up(self.seg(self.base(pictures)))
        return logits


def drn_d_105() -> nn.Sequential:
    """The body without its classifier, a map of 512 channels and stride 8; 54,288,304 parameters."""
    levels = [_plain(3, 16, kernel=7), _plain(16, 16), _plain(16, 32, stride=2)]
    before = 32
    for width, count, stride, dilation in _BLOCKS:
        levels.append(_bottlenecks(before, width, count, stride, dilation))
        before = 4 * width
    return nn.Sequential(*levels, _plain(before, 512, dilation=2), _plain(512, 512))


def _plain(before: int, after: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def _bottlenecks(before: int, width: int, count: int, stride: int, dilation: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(before, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width))
    first = Bottleneck(before, width, stride, shortcut, dilation=dilation)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, dilation=dilation) for _ in range(count - 1)))


def _bilinear(factor: int) -> torch.Tensor:
    """The kernel (2·factor, 2·factor) with which a transposed convolution enlarges bilinearly."""
    side = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return side[:, None] * side[None, :]
