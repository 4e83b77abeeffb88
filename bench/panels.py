"""Pictures that show what a network sees: mask, predicted saliency, and the embedding in colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["colours_of", "grid", "panel"]

_EDGE = 0.02


def colours_of(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Vectors (n, D) as colours, uint8 (n, 3): the first three principal components, stretched over 0 … 255.

    The outer 2 % of each component's values on either side are cut.
    """
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    parts = np.zeros((len(vectors), 3))
    kept = min(3, vectors.shape[1])
    parts[:, :kept] = centred @ axes[:, ::-1][:, :kept]
    low, high = np.quantile(parts, [_EDGE, 1 - _EDGE], axis=0)
    stretched = (parts - low) / np.maximum(high - low, 1e-12)
    colours: NDArray[np.uint8] = (stretched.clip(0, 1) * 255).round().astype(np.uint8)
    return colours


def panel(
    pictures: NDArray[np.uint8], masks: NDArray[np.bool_], saliency: NDArray[np.float32], embedding: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """One row per picture: the picture, its mask, the saliency, the embedding; uint8 (B·S, 4·S, 3).

    pictures: (B, S, S, 3). masks: (B, S, S). saliency: probabilities (B, h, w). embedding: (B, h, w, D), one set
    of colours for all pictures.
    """
    side = pictures.shape[1]
    colours = colours_of(embedding.reshape(-1, embedding.shape[-1])).reshape(*embedding.shape[:3], 3)
    grey = (saliency * 255).round().astype(np.uint8)
    white = masks.astype(np.uint8) * np.uint8(255)
    return grid([pictures, white, grey, colours], side)


def grid(columns: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Pictures side by side, each column grey (B, h, w) or RGB (B, h, w, 3): uint8 (B · side, columns · side, 3)."""
    rows = zip(*columns, strict=True)
    return np.concatenate([np.concatenate([_sized(part, side) for part in row], axis=1) for row in rows])


def _sized(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Grey (h, w) or RGB (h, w, 3) as RGB at side × side, by nearest neighbour: cells stay visible."""
    image = Image.fromarray(picture).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
    return np.array(image, dtype=np.uint8)
