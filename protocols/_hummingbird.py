"""The settings of dense nearest neighbours, its presets, and how large its memory is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.records import Choice, Preset, Source
from bench.settings import InputSettings, setting

__all__ = ["PRESETS", "HummingbirdSettings", "bytes_a_vector", "places", "size_text"]

LARGEST = 10_240_000
"""Vectors of the largest memory that is published."""

_BYTES = 2_000_000_000
"""What a memory takes where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class HummingbirdSettings(InputSettings):
    """What is remembered of the train split, and how it is asked."""

    memory: int = setting(
        0, "vectors in the memory; 0: what fits in 2 GB with its labels, at most 10,240,000", minimum=0
    )
    sampling: Literal["balanced", "uniform"] = setting(
        "balanced",
        "where there are more cells, which of each picture are remembered: any, or rather those of classes that are "
        "rare in the picture",
    )
    void: Literal["leave", "background"] = setting(
        "leave", "void pixels of the train split leave the labels of their cells, or count as background"
    )
    neighbours: int = setting(30, "nearest vectors that give a cell its label", minimum=1)
    temperature: float = setting(0.02, "cosines are divided by it before the softmax", minimum=1e-6)
    engine: Literal["auto", "faiss", "torch"] = setting(
        "auto", "what searches; auto: faiss on a processor, torch on a GPU"
    )

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        return "labels"


def bytes_a_vector(channels: int, classes: int) -> int:
    """Of a remembered vector and its soft label, in float32."""
    return 4 * (channels + classes)


def places(settings: HummingbirdSettings, channels: int, classes: int) -> int:
    """The most vectors that are remembered."""
    return settings.memory or min(LARGEST, _BYTES // bytes_a_vector(channels, classes))


def size_text(size: int) -> str:
    """Bytes for people, in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


_CODE = "open-hummingbird"

_SHARED = {
    "sampling": Choice("balanced", Source.CODE, f"{_CODE}; there every picture gives the same number"),
    "void": Choice("leave", Source.OURS, f"{_CODE} counts void as class 0, the background"),
    "neighbours": Choice(30, Source.CODE, _CODE),
    "temperature": Choice(0.02, Source.CODE, _CODE),
}

PRESETS = (
    Preset(
        name="paper",
        version=2,
        summary="512×512, a memory of 2 GB (published: memory=10240000, of augmented pictures)",
        choices={
            "size": Choice("512", Source.CODE, f"{_CODE}; there scores too are taken at 512×512, and matched"),
            "interpolation": Choice("bilinear", Source.CODE, _CODE),
            "memory": Choice(
                0,
                Source.OURS,
                f"{LARGEST:,} in {_CODE}, 85 GB at width 2048; its crops and jitter are left out",
            ),
            **_SHARED,
        },
    ),
    Preset(
        name="native",
        version=1,
        summary="each picture at its own size, a memory of 2 GB",
        choices={
            "size": Choice("native", Source.OURS, "no picture is stretched; shares the maps of kmeans:native"),
            "interpolation": Choice("bicubic", Source.OURS, "shares the maps of kmeans:native"),
            "memory": Choice(0, Source.OURS, "2 GB fit into most machines; the score grows with the memory"),
            **_SHARED,
        },
    ),
)
