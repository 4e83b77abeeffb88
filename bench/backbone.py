"""Any network as an adapter: named maps in one pass, checked, with its preprocessing.

    def build():
        return Backbone(net, stride=32, channels=512)

where `net` maps float (B, 3, H, W) to (B, 512, H / 32, W / 32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.errors import FeatureError, MismatchError, SettingError
from bench.records import Tap

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Backbone"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """An adapter around a network that takes normalised pictures (it satisfies `bench.contracts.Adapter`).

    body: called with float (B, 3, H, W); returns one map (B, D, h, w), or a dictionary of maps by tap name.
        A network that can stop early is adapted by a subclass that overrides `maps`.
    taps: the maps it gives. Left out, there is one, `last`, of `stride` (input pixels) and `channels`.
    mean, std: per channel, of pictures multiplied by `scale`.
    pad_to: the sides of the input must be multiples of this; left out, the largest stride.
    default_tap: left out, the last of the taps.
    fingerprint: text that changes whenever the maps do; "" = the weights alone decide them.
    account: what became of every key of the checkpoint (`bench.weights.Account.as_dict`), {} where none was read.

    Raises SettingError when taps, stride and channels do not fit together.
    """

    needs_labels = False

    def __init__(
        self,
        body: nn.Module,
        *,
        taps: Sequence[Tap] | None = None,
        stride: float | None = None,
        channels: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        scale: float = 1 / 255,
        pad_to: int | None = None,
        default_tap: str | None = None,
        fingerprint: str = "",
        account: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        named = tuple(taps) if taps is not None else (_only_tap(stride, channels),)
        if taps is not None and (stride is not None or channels is not None):
            raise SettingError("Backbone: taps say stride and channels already; give one or the other")
        self.body = body
        self.taps: Mapping[str, Tap] = {tap.name: tap for tap in named}
        if not named or len(self.taps) < len(named):
            raise SettingError(f"Backbone: expected taps of different names, got {[tap.name for tap in named]}")
        self.default_tap = default_tap if default_tap is not None else named[-1].name
        self._check_known([self.default_tap])
        self.mean, self.std, self.scale = tuple(mean), tuple(std), scale
        self.pad_to = pad_to if pad_to is not None else max(1, round(max(tap.stride for tap in named)))
        self.fingerprint = fingerprint
        self.account = account if account is not None else {}

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (B, 3, H, W) -> float32 (B, 3, H, W): (pictures · scale - mean) / std, per channel."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pictures.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=pictures.device).view(-1, 1, 1)
        return (pictures.to(torch.float32) * self.scale - mean) / std

    def forward(
        self, inputs: torch.Tensor, taps: Sequence[str], *, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Maps of the taps asked for, each float (B, D, h, w), from float (B, 3, H, W). `labels` are not read.

        Raises MismatchError for a tap it does not have, FeatureError for maps that are not as promised.
        """
        self._check_known(taps)
        maps = self.maps(inputs, taps)
        missing = [name for name in taps if name not in maps]
        if missing:
            raise FeatureError(f"the network gave no map '{missing[0]}'; it gave {_listed(maps)}")
        for name in taps:
            self._check_map(name, maps[name], len(inputs))
        return {name: maps[name] for name in taps}

    def maps(self, inputs: torch.Tensor, taps: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """The maps of `taps`, and perhaps more: one call of the body, which does not know what was asked for."""
        given = self.body(inputs)
        if isinstance(given, Mapping):
            return given
        if len(self.taps) > 1:
            raise FeatureError(f"the network gave one map; expected a dictionary with {_listed(self.taps)}")
        return {self.default_tap: given}

    def _check_known(self, taps: Sequence[str]) -> None:
        for name in taps:
            if name not in self.taps:
                raise MismatchError(f"tap '{name}' is not given; there are {_listed(self.taps)}")

    def _check_map(self, name: str, given: object, pictures: int) -> None:
        seen = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        wanted = (pictures, self.taps[name].channels)
        if not isinstance(given, torch.Tensor) or given.ndim != 4 or tuple(given.shape[:2]) != wanted:
            raise FeatureError(f"map '{name}' is {seen}; expected a float tensor ({wanted[0]}, {wanted[1]}, h, w)")
        if not given.is_floating_point():
            raise FeatureError(f"map '{name}' is {seen}; expected floating-point values")


def _only_tap(stride: float | None, channels: int | None) -> Tap:
    if stride is None or channels is None:
        raise SettingError(
            "Backbone: give stride (input pixels from one cell to the next) and channels of the map, or a list of taps"
        )
    return Tap(name="last", channels=channels, stride=stride)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)
