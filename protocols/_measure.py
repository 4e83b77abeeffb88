"""The loss of an epoch, and whether it says that nothing was learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

__all__ = ["EpochLoss", "above_chance"]


class EpochLoss:
    """The mean cross-entropy per labelled pixel of each of several classifiers since the epoch began."""

    def __init__(self, classifiers: int, device: torch.device) -> None:
        self.sums = torch.zeros(classifiers, dtype=torch.float64, device=device)
        self.pixels = torch.zeros_like(self.sums)

    def add(self, losses: torch.Tensor, pixels: torch.Tensor) -> None:
        """losses: means (classifiers,) over so many labelled pixels (classifiers,) of one step, in all processes."""
        self.sums += torch.where(pixels > 0, losses.detach().double() * pixels, 0.0)
        self.pixels += pixels

    def begin(self) -> None:
        """Forget what was added: an epoch begins."""
        self.sums.zero_()
        self.pixels.zero_()

    def mean(self, classifier: int = 0) -> float | None:
        """Of one classifier; None where it saw no labelled pixel."""
        return float(self.sums[classifier] / self.pixels[classifier]) if self.pixels[classifier] > 0 else None

    def state(self) -> Mapping[str, torch.Tensor]:
        return {"sums": self.sums, "pixels": self.pixels}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        self.sums.copy_(state["sums"])
        self.pixels.copy_(state["pixels"])


def above_chance(loss: float | None, classes: int, fix: str) -> list[str]:
    """What is to be said of a classifier whose last epoch had this mean cross-entropy per labelled pixel.

    ln(classes) is what equal scores for all classes give: above it, the rate was too high or the training too short.
    """
    if loss is None or loss <= math.log(classes):
        return []
    return [
        f"the cross-entropy of the last epoch is {loss:.3g} per labelled pixel, above ln({classes}) = "
        f"{math.log(classes):.3g}, which guessing gives: {fix}"
    ]
