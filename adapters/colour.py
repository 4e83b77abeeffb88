"""The mean colour of every cell: what a protocol gives to features that know no more than that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import AdapterRequest, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourOptions:
    """stride: input pixels per cell."""

    stride: int = setting(8, "input pixels per cell", minimum=1, maximum=4096)


CARD = MethodCard(
    name="colour",
    summary="mean RGB colour of each cell: the floor of features that see colour alone",
    factory="bench.adapters.colour:build",
    trainable=False,
    options=ColourOptions,
    taps=("colour",),
    default_tap="colour",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; its map is in [0, 1]."""
    from torch import nn

    from bench.backbone import Backbone
    from bench.records import Tap

    options: ColourOptions = request.options
    return Backbone(
        nn.AvgPool2d(options.stride, ceil_mode=True),
        taps=[Tap(name="colour", channels=3, stride=options.stride)],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        fingerprint=f"colour stride={options.stride}",
    )
