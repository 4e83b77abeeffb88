"""Saliency maps as arrays: what networks read of a picture, what becomes of their output, and masks cut from maps.

Pure functions. A saliency map is uint8 (H, W), 0 … 255; a mask is bool (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from bench.settings import setting

__all__ = ["CutSettings", "cut", "network_input", "stretch_to_bytes", "stretch_to_size"]

Bits = NDArray[np.bool_]
Map = NDArray[np.uint8]

_ALL_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """How a map becomes a mask."""

    threshold: float = setting(0.5, "a pixel is foreground where the map, 0 to 1, is above this", minimum=0, maximum=1)
    smallest: float = setting(
        0.01,
        "pieces below this share of the picture are removed; with less foreground left there is no mask",
        minimum=0,
        maximum=1,
    )
    cleaning: Literal["released-code", "components"] = setting(
        "released-code", "what a piece is: what a contour encloses (as MaskContrast's code), or a connected component"
    )


def cut(saliency: Map, how: CutSettings) -> Bits | None:
    """The mask of a map, None where too little foreground is left.

    The two ways of cleaning differ where foreground is pierced. `released-code` removes what a small contour encloses:
    a component with its holes filled, but also a hole with the foreground around it, one pixel wide, and with the
    islands in it. `components` removes connected components (8 neighbours) of fewer pixels than `smallest` and leaves
    everything else as it is.
    """
    mask = saliency > how.threshold * 255
    least = how.smallest * mask.size
    kept = _without_small_components(mask, least) if how.cleaning == "components" else _released(mask, least)
    left = np.count_nonzero(kept)
    return kept if left > 0 and left >= least else None


def _without_small_components(mask: Bits, least: float) -> Bits:
    labels: NDArray[np.int32] = ndimage.label(mask, _ALL_EIGHT)[0]
    large = np.bincount(labels.ravel()) >= least
    large[0] = False
    kept: Bits = large[labels]
    return kept


def _released(mask: Bits, least: float) -> Bits:
    """Without the pixels that contours of fewer than `least` pixels enclose, themselves included.

    Source: the recipe for masks of MaskContrast's repository, which traces all outer and inner borders (foreground
    has 8 neighbours, background 4) and fills each. An outer border encloses its component with the holes filled; an
    inner one a hole, the foreground pixels beside it and whatever lies in it.
    """
    kept: Bits = mask.copy()
    components, _ = ndimage.label(mask, _ALL_EIGHT)
    for index, window in enumerate(ndimage.find_objects(components), 1):
        _remove(kept[window], components[window] == index, least)
    holes, _ = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    for index, window in enumerate(ndimage.find_objects(holes), 1):
        wider = tuple(slice(side.start - 1, side.stop + 1) for side in window)
        # what lies beside a hole is foreground on all four sides
        _remove(kept[wider], ndimage.binary_dilation(holes[wider] == index), least)
    return kept


def _remove(window: Bits, border: Bits, least: float) -> None:
    """Clear what a border encloses, in place, where that is small."""
    enclosed = ndimage.binary_fill_holes(border)
    if np.count_nonzero(enclosed) < least:
        window[enclosed] = False


def network_input(picture: NDArray[np.uint8], size: int, mean: Any, std: Any) -> NDArray[np.float32]:
    """What BASNet and U²-Net read of a picture (H, W, 3): float32 (3, size, size).

    Stretched bilinearly without anti-aliasing, divided by its own largest value (of all channels), then per channel
    minus `mean`, over `std`. Where the three channels are one, as in a grey picture, all get the first mean and std.
    Source: the loaders of both repositories; a black picture, which they divide by 0, stays black.
    """
    from skimage.transform import resize

    values = resize(picture, (size, size), order=1, mode="constant", anti_aliasing=False)
    values = values / (values.max() or 1.0)
    grey = bool((picture == picture[..., :1]).all())
    mean, std = (np.full(3, given[0]) if grey else np.asarray(given) for given in (mean, std))
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1), dtype=np.float32)


def stretch_to_bytes(values: NDArray[np.floating[Any]]) -> Map:
    """Values (h, w) from their least to their largest as 0 … 255, cut off to whole numbers; all 0 where all are one.

    Source: BASNet and U²-Net, which divide by 0 in the latter case.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    return ((values - low) / (high - low) * 255).astype(np.uint8)


def stretch_to_size(saliency: Map, size: tuple[int, int]) -> Map:
    """A map at the size (H, W) of its picture: bilinear as Pillow defines it, so averaged where it shrinks."""
    height, width = size
    if saliency.shape == size:
        return saliency
    return np.array(Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR))
