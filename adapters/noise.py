"""Random features: what a protocol gives when the maps know nothing of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import AdapterRequest, MethodCard
from bench.settings import setting

if TYPE_CHECKING:
    from bench.contracts import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseOptions:
    """width: channels. stride: input pixels per cell. seed: of the draw."""

    width: int = setting(32, "channels of the map", minimum=1, maximum=65536)
    stride: int = setting(8, "input pixels per cell", minimum=1, maximum=4096)
    seed: int = setting(0, "seed of the draw", minimum=0)


CARD = MethodCard(
    name="noise",
    summary="standard normal noise: the floor of features that know nothing",
    factory="bench.adapters.noise:build",
    trainable=False,
    options=NoiseOptions,
    taps=("noise",),
    default_tap="noise",
    notes="The draw is a function of the seed and of the picture's content: no batch and no device changes it.",
)


def build(request: AdapterRequest) -> Adapter:
    """The adapter; the network's input is the picture's values, 0 … 255."""
    from bench.backbone import Backbone
    from bench.records import Tap

    from ._floors import ContentNoise

    options: NoiseOptions = request.options
    return Backbone(
        ContentNoise(options.width, options.stride, options.seed),
        taps=[Tap(name="noise", channels=options.width, stride=options.stride)],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        scale=1.0,
        fingerprint=f"noise width={options.width} stride={options.stride} seed={options.seed}",
    )
