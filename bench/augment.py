"""Random views of a picture and its mask, drawn together: crop, colour jitter, grey, flip.

Drawing a view and making it are different functions. `draw_view` takes all chance from the generator it is given,
the others have none, so that a view is a pure function of the numbers that seeded the generator.

Source of the rules: the random resized crop of Szegedy et al. (arXiv 1409.4842, section 6) and the colour jitter of
Howard (arXiv 1312.5402), in the form that torchvision gave them and that MaskContrast (arXiv 2102.06191) trains with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bench.errors import SettingError
from bench.settings import setting

__all__ = ["Augmentation", "Jitter", "View", "draw_box", "draw_jitter", "draw_view", "view_mask", "view_picture"]

T = TypeVar("T", np.uint8, np.bool_)

_CROP_TRIES = 10
_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How far colours are changed; the defaults are those of MaskContrast's released code."""

    brightness: float = setting(0.4, "brightness is multiplied by 1 ± this", minimum=0, maximum=1)
    contrast: float = setting(0.4, "contrast is multiplied by 1 ± this", minimum=0, maximum=1)
    saturation: float = setting(0.4, "saturation is multiplied by 1 ± this", minimum=0, maximum=1)
    hue: float = setting(0.1, "the hue is turned by ± this share of a full turn", minimum=0, maximum=0.5)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Jitter):
    """How views are drawn; the defaults are those of MaskContrast's released code."""

    size: int = setting(224, "side of a view in pixels", minimum=8)
    area: tuple[float, ...] = setting((0.2, 1.0), "least and largest share of the picture shown", minimum=0, maximum=1)
    ratio: tuple[float, ...] = setting((3 / 4, 4 / 3), "least and largest width / height of it", minimum=0.01)
    jitter: float = setting(0.8, "probability of colour jitter", minimum=0, maximum=1)
    grey: float = setting(0.2, "probability of a view without colour", minimum=0, maximum=1)
    flip: float = setting(0.5, "probability of a mirrored view", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        for name, pair in (("area", self.area), ("ratio", self.ratio)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                given = ",".join(map(str, pair))
                raise SettingError(f"augment.{name}={given} does not fit: expected two numbers above 0, smaller first")


@dataclass(frozen=True, slots=True)
class View:
    """What was drawn. box: left, top, width, height in pixels of the picture. jitter: (what, amount) in order of use.

    Amounts of brightness, contrast and saturation are factors, that of hue is in turns.
    """

    box: tuple[int, int, int, int]
    flip: bool = False
    grey: bool = False
    jitter: tuple[tuple[str, float], ...] = ()


def draw_view(recipe: Augmentation, size: tuple[int, int], rng: np.random.Generator) -> View:
    """Draw a view of a picture of `size` (H, W)."""
    box = draw_box(size, recipe.area, recipe.ratio, rng)
    jitter = draw_jitter(recipe, rng) if rng.random() < recipe.jitter else ()
    return View(box, jitter=jitter, grey=bool(rng.random() < recipe.grey), flip=bool(rng.random() < recipe.flip))


def view_picture(view: View, picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The view of a uint8 RGB picture (H, W, 3), uint8 (size, size, 3); bilinear, anti-aliased when it shrinks."""
    image = Image.fromarray(_cut(picture, view)).resize((size, size), Image.Resampling.BILINEAR)
    for what, amount in view.jitter:
        image = _turn_hue(image, amount) if what == "hue" else _ENHANCERS[what](image).enhance(amount)
    if view.grey:
        image = image.convert("L").convert("RGB")
    return _mirrored(np.array(image, dtype=np.uint8), view.flip)


def view_mask(view: View, mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The same view of a mask, bool (H, W) -> (size, size); resampled by nearest neighbour."""
    grey = Image.fromarray(_cut(mask, view).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return _mirrored(np.array(grey) > 0, view.flip)


def _cut(array: NDArray[T], view: View) -> NDArray[T]:
    """What the view shows, before it is resampled: nothing around it may shine in."""
    left, top, width, height = view.box
    return array[top : top + height, left : left + width]


def _mirrored(array: NDArray[T], flip: bool) -> NDArray[T]:
    return np.ascontiguousarray(array[:, ::-1]) if flip else array


def draw_box(
    size: tuple[int, int], area: Sequence[float], ratio: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) in a picture of `size` (H, W), of random area and log-uniform width / height.

    area: least and largest share of the picture. ratio: least and largest width / height. After ten boxes that do not
    fit, a large central one.
    """
    height, width = size
    low, high = ratio
    for _ in range(_CROP_TRIES):
        share = height * width * rng.uniform(area[0], area[1])
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(share * drawn)), round(math.sqrt(share / drawn))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    nearest = min(max(width / height, low), high)
    w, h = min(width, max(1, round(height * nearest))), min(height, max(1, round(width / nearest)))
    return (width - w) // 2, (height - h) // 2, w, h


def draw_jitter(spreads: Jitter, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """The four changes of colour in random order, without those that are switched off (see `View`)."""
    drawn = []
    for index in rng.permutation(4):
        name = ("brightness", "contrast", "saturation", "hue")[index]
        spread = getattr(spreads, name)
        amount = float(rng.uniform(-spread, spread))
        if spread:
            drawn.append((name, amount if name == "hue" else 1 + amount))
    return tuple(drawn)


def _turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the hue circle, of 256 steps, by a share of a full turn."""
    steps = int(turns * 255) % 256
    if not steps:
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
