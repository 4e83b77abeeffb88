"""What the cards of all ResNet-50 methods share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.settings import setting

TAPS = ("layer1", "layer2", "layer3", "layer4")
DEFAULT_TAP = "layer4"

STRIDE_NOTE = (
    "The papers' baselines read layer4 of a dilated network; its authors report an output stride of 8, the supplement "
    "of arXiv 2102.06191 speaks of dilating the last block only, which is 16. The default is 8."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetOptions:
    """output_stride: input pixels per cell of the deepest map."""

    output_stride: Literal[8, 16, 32] = setting(
        8, "input pixels per cell of layer4: 8 (layers 3 and 4 dilated), 16 (layer4 dilated) or 32 (as pre-trained)"
    )
