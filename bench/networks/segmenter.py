"""A method's network with a decoder and a classifier: what fine-tuning trains, and an adapter of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bench.records import Tap

__all__ = ["Segmenter"]


class Segmenter(nn.Module):
    """Pictures to class scores; satisfies `bench.contracts.Adapter` with the one map `classes`.

    network: an adapter that is an `nn.Module`; it is trained in place. tap: the map that is read. decoder: from that
    map to one of `width` channels at the same resolution, None for none. classes: as many scores. init_std: standard
    deviation of the classifier's initial weights, its biases begin at 0.
    """

    taps: Mapping[str, Tap]

    default_tap = "classes"
    needs_labels = False
    fingerprint = ""

    def __init__(
        self, network: Any, tap: str, decoder: nn.Module | None, *, width: int, classes: int, init_std: float
    ) -> None:
        super().__init__()
        self.network, self.decoder = network, decoder
        self.classifier = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classifier.weight, std=init_std)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)
        read: Tap = network.taps[tap]
        self.read, self.pad_to = tap, int(network.pad_to)
        self.taps = {
            "classes": Tap(name="classes", channels=classes, stride=read.stride, offset=read.offset, kind="class_logit")
        }

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """As the network does: uint8 RGB (B, 3, H, W) -> float (B, C, H, W)."""
        inputs: torch.Tensor = self.network.preprocess(pictures)
        return inputs

    def forward(
        self, inputs: torch.Tensor, taps: Sequence[str] = ("classes",), *, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`classes` (B, classes, h, w), differentiable; `labels` are not read."""
        found = self.network(inputs, (self.read,))[self.read]
        return {"classes": self.classifier(found if self.decoder is None else self.decoder(found))}
