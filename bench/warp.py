"""Random changes of a picture and its label map, made together: flip, rotation and zoom, crop, size.

Drawing and making are different functions, as in `bench.augment`: `draw` takes all chance from the generator it is
given, so that a warped pair is a pure function of the numbers that seeded the generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.augment import draw_box
from bench.images import resize_picture
from bench.records import IGNORE

__all__ = ["Drawn", "Warp", "draw", "warp_label", "warp_picture"]

Pair = tuple[float, float]

_MEAN_COLOUR = (124, 116, 104)
"""What lies around a picture that is smaller than its crop: ImageNet's mean, zero after the usual normalisation."""

_RATIO = (3 / 4, 4 / 3)
"""Least and largest width / height of a random crop: torchvision's RandomResizedCrop, as leopart's probe takes it."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """What may be drawn, in the order in which it is made. The defaults change nothing.

    flip: probability of a mirrored pair. rotate: degrees, the angle is within ± this. zoom: least and largest factor,
    about the centre; rotation and zoom keep the picture's frame, and what comes in from outside is black.
    border: the label of what comes in. area: share of the picture in a random crop, whose width / height is drawn too
    (`bench.augment.draw_box`); None = none.
    size: (H, W) that the pair is stretched to; None = as it is. scale: least and largest factor of the size before a
    crop of crop × crop pixels is cut out at random (0 = none); what lies outside the picture is void.
    interpolation: of pictures; label maps take the nearest pixel.
    """

    flip: float = 0.0
    rotate: float = 0.0
    zoom: Pair = (1.0, 1.0)
    border: int = IGNORE
    area: Pair | None = None
    size: tuple[int, int] | None = None
    scale: Pair = (1.0, 1.0)
    crop: int = 0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn for one pair. angle: degrees, counter-clockwise. box: left, top, width, height of the crop.

    scaled: (H, W) before the last crop. corner: (top, left) of that crop, negative where it begins outside.
    """

    flip: bool
    angle: float
    zoom: float
    box: tuple[int, int, int, int] | None
    scaled: tuple[int, int]
    corner: tuple[int, int]


def draw(warp: Warp, size: tuple[int, int], rng: np.random.Generator) -> Drawn:
    """Draw for a pair of `size` (H, W)."""
    flip = bool(rng.random() < warp.flip)
    angle, zoom = float(rng.uniform(-warp.rotate, warp.rotate)), float(rng.uniform(*warp.zoom))
    box = draw_box(size, warp.area, _RATIO, rng) if warp.area else None
    now = warp.size or ((box[3], box[2]) if box else size)
    factor = float(rng.uniform(*warp.scale))
    height, width = (max(1, round(side * factor)) for side in now)
    corner = (0, 0)
    if warp.crop:
        corner = (_start(height - warp.crop, rng), _start(width - warp.crop, rng))
    return Drawn(flip, angle, zoom, box, (height, width), corner)


def _start(spare: int, rng: np.random.Generator) -> int:
    """Where a crop begins, with `spare` pixels to choose from; a crop larger than the picture begins before it."""
    return int(rng.integers(min(spare, 0), max(spare, 0) + 1))


def warp_picture(warp: Warp, drawn: Drawn, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The drawn change of a picture, uint8 RGB (H, W, 3)."""
    if drawn.flip:
        picture = picture[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(picture))
    if _moves(drawn):
        image = image.transform(
            image.size, Image.Transform.AFFINE, _affine(drawn, image.size), _FILTERS[warp.interpolation]
        )
    picture = _cut(np.array(image), drawn)
    picture = resize_picture(picture, drawn.scaled, warp.interpolation)
    return _window(picture, drawn.corner, warp.crop, np.array(_MEAN_COLOUR, np.uint8))


def warp_label(warp: Warp, drawn: Drawn, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same change of a label map, uint8 (H, W); every pixel takes the label of the nearest one."""
    if drawn.flip:
        label = label[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(label))
    if _moves(drawn):
        image = image.transform(
            image.size,
            Image.Transform.AFFINE,
            _affine(drawn, image.size),
            Image.Resampling.NEAREST,
            fillcolor=warp.border,
        )
    label = _cut(np.array(image), drawn)
    if label.shape != drawn.scaled:
        height, width = drawn.scaled
        label = np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    return _window(label, drawn.corner, warp.crop, np.array(IGNORE, np.uint8))


def _moves(drawn: Drawn) -> bool:
    return bool(drawn.angle) or drawn.zoom != 1


def _affine(drawn: Drawn, size: tuple[int, int]) -> tuple[float, ...]:
    """Where each pixel of the result comes from, as Pillow takes it: (a, b, c, d, e, f), x' = a·x + b·y + c, …

    size: (W, H).
    """
    turn = math.radians(drawn.angle)
    cos, sin = math.cos(turn) / drawn.zoom, math.sin(turn) / drawn.zoom
    x, y = size[0] / 2, size[1] / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _cut(array: NDArray[np.uint8], drawn: Drawn) -> NDArray[np.uint8]:
    if drawn.box is None:
        return array
    left, top, width, height = drawn.box
    return np.ascontiguousarray(array[top : top + height, left : left + width])


def _window(
    array: NDArray[np.uint8], corner: tuple[int, int], side: int, around: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """side × side pixels from `corner` on, with `around` where there are none; all of it where side is 0."""
    if not side:
        return array
    window = np.empty((side, side, *array.shape[2:]), np.uint8)
    window[...] = around
    (top, left), (height, width) = corner, array.shape[:2]
    bottom, right = min(top + side, height), min(left + side, width)
    inside = array[max(top, 0) : bottom, max(left, 0) : right]
    row, column = max(-top, 0), max(-left, 0)
    window[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return window
