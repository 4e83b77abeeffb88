"""Settings and presets that producers share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench.augment import Jitter
from bench.records import Choice, Source
from bench.settings import setting

__all__ = ["CropSettings", "RunSettings", "choices"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run is watched and kept; nothing here changes what is learnt, and a resumed run may differ in it."""

    log_every: int = setting(10, "steps between figures", minimum=1)
    panel_every: int = setting(200, "steps between pictures of what the network sees and gives", minimum=1)
    save_every: int = setting(0, "steps between checkpoints; 0: an epoch, at least 100 steps", minimum=0)
    keep: int = setting(2, "checkpoints kept", minimum=1)


@dataclass(frozen=True, kw_only=True)
class CropSettings(Jitter):
    """How crops are made; the defaults are those of IIC's released code."""

    size: int = setting(128, "side of a crop in pixels, even", minimum=10)
    scale: float | Literal["fit"] = setting(
        0.33, "pictures are scaled by this before they are cropped; fit: to the side of a crop", minimum=0.01, maximum=1
    )
    flip: float = setting(0.5, "probability of a mirrored view", minimum=0, maximum=1)
    hue: float = setting(0.125, "the hue is turned by ± this share of a full turn", minimum=0, maximum=0.5)


def choices(source: Source, note: str, **values: Any) -> dict[str, Choice]:
    """Choices of one source; `__` in a name stands for the dot."""
    return {name.replace("__", "."): Choice(value, source, note) for name, value in values.items()}
