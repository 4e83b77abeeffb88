"""The networks of the methods without weights: labels, noise, colour."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from bench.errors import MismatchError
from bench.records import IGNORE, Tap


class OneHotLabels(nn.Module):
    """An adapter whose map is the label map itself, one channel per class, at the labels' own size.

    A void pixel takes the label of the nearest pixel that has one; a picture that is all void gives zeros.
    """

    default_tap = "labels"
    pad_to = 1
    needs_labels = True

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fingerprint = f"oracle classes={classes}"
        self.taps: Mapping[str, Tap] = {"labels": Tap(name="labels", channels=classes, stride=1, frame="label")}

    def preprocess(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> float32 of the same shape; the pictures themselves are not read."""
        return pictures.to(torch.float32)

    def forward(
        self, inputs: torch.Tensor, taps: Sequence[str], *, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """float32 (B, classes, H', W') of zeros and ones, from labels uint8 (B, H', W').

        Raises MismatchError for other taps, without labels, and for labels that no class has.
        """
        for name in taps:
            if name not in self.taps:
                raise MismatchError(f"tap '{name}' is not given; there are {', '.join(self.taps)}")
        if labels is None:
            raise MismatchError("the oracle was given no labels; use it on a split that has them")
        classes = self.taps["labels"].channels
        if ((labels >= classes) & (labels != IGNORE)).any():
            worst = int(labels[labels != IGNORE].max())
            raise MismatchError(f"a label is {worst}; expected 0 … {classes - 1}, or {IGNORE} for void")
        one_hot = torch.stack([self._one_hot(one, classes) for one in labels.cpu().numpy()])
        return {name: one_hot.to(inputs.device) for name in taps}

    @staticmethod
    def _one_hot(labels: NDArray[np.uint8], classes: int) -> torch.Tensor:
        void = labels == IGNORE
        if void.all():
            return torch.zeros(classes, *labels.shape)
        if void.any():
            rows, columns = ndimage.distance_transform_edt(void, return_distances=False, return_indices=True)
            labels = labels[rows, columns]
        hot = nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), classes)
        return hot.permute(2, 0, 1).to(torch.float32)


class ContentNoise(nn.Module):
    """Standard normal maps that depend on the seed and on the picture's content, and on nothing else.

    The numbers are drawn on the CPU, so that every device gives the same.
    """

    def __init__(self, width: int, stride: int, seed: int) -> None:
        super().__init__()
        self.width, self.stride, self.seed = width, stride, seed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 (B, width, ceil(H / stride), ceil(W / stride)) from float (B, C, H, W)."""
        grid = tuple(-(-side // self.stride) for side in inputs.shape[-2:])
        pictures = inputs.detach().to("cpu", torch.float32)
        return torch.stack([self._draw(picture, grid) for picture in pictures]).to(inputs.device)

    def _draw(self, picture: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.seed} {tuple(picture.shape)}\n".encode())
        digest.update(picture.numpy().tobytes())
        generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "big") >> 1)
        return torch.randn(self.width, *grid, generator=generator)
