"""Joint views: against torchvision's functions, by the rules they are drawn by, and as pure functions of their key."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional

from bench.augment import Augmentation, View, draw_view, view_mask, view_picture
from bench.batches import generator
from bench.errors import SettingError


def picture(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resampling keeps structure."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def draws(recipe: Augmentation, count: int, size: tuple[int, int] = (60, 80)) -> list[View]:
    return [draw_view(recipe, size, generator(1, index)) for index in range(count)]


def test_a_view_is_a_function_of_its_key():
    recipe = Augmentation()
    assert draw_view(recipe, (60, 80), generator(3, 1, 4)) == draw_view(recipe, (60, 80), generator(3, 1, 4))
    assert len({draw_view(recipe, (60, 80), generator(*key)).box for key in [(3,), (3, 0), (3, 0, 0), (0, 3)]}) == 4


@pytest.mark.parametrize(
    ("what", "amount", "reference"),
    [
        ("brightness", 1.3, functional.adjust_brightness),
        ("contrast", 0.7, functional.adjust_contrast),
        ("saturation", 1.4, functional.adjust_saturation),
        ("hue", 0.1, functional.adjust_hue),
        ("hue", -0.4, functional.adjust_hue),
    ],
)
def test_colours_change_as_torchvision_changes_them(what, amount, reference):
    whole = View((0, 0, 40, 40), jitter=((what, amount),))
    source = picture(40, 40)
    expected = np.array(reference(Image.fromarray(source), amount))
    assert np.array_equal(view_picture(whole, source, 40), expected)
    assert not np.array_equal(expected, source)


def test_crop_grey_and_flip_are_torchvisions():
    view = View((7, 11, 40, 33), flip=True, grey=True)
    image = functional.resized_crop(Image.fromarray(picture()), 11, 7, 33, 40, [24, 24])
    expected = functional.horizontal_flip(functional.rgb_to_grayscale(image, num_output_channels=3))
    assert np.array_equal(view_picture(view, picture(), 24), np.array(expected))


def test_jitter_is_used_in_its_order():
    source = picture(32, 32)
    steps = (("contrast", 0.6), ("hue", 0.2), ("brightness", 1.4))
    one_by_one = source
    for step in steps:
        one_by_one = view_picture(View((0, 0, 32, 32), jitter=(step,)), one_by_one, 32)
    together = view_picture(View((0, 0, 32, 32), jitter=steps), source, 32)
    assert np.array_equal(together, one_by_one)
    assert not np.array_equal(together, view_picture(View((0, 0, 32, 32), jitter=steps[::-1]), source, 32))


def test_mask_and_picture_show_the_same():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:45] = True
    drawn = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    colourless = Augmentation(jitter=0, grey=0)
    for view in draws(colourless, 40):
        inside, seen = view_mask(view, mask, 48), view_picture(view, drawn, 48)[..., 0] > 127
        assert inside.dtype == bool
        assert (inside == seen).mean() > 0.97


def test_boxes_follow_area_and_ratio():
    recipe = Augmentation(area=(0.3, 0.6), ratio=(0.8, 1.25))
    views = draws(recipe, 300)
    for left, top, width, height in (view.box for view in views):
        assert 0 <= left <= 80 - width
        assert 0 <= top <= 60 - height
        assert 0.28 < width * height / (60 * 80) < 0.62
        assert 0.76 < width / height < 1.32
    areas = np.array([view.box[2] * view.box[3] for view in views]) / (60 * 80)
    assert abs(areas.mean() - 0.45) < 0.02
    assert {view.box[0] > 20 for view in views} == {True, False}


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (1, 1), (3, 2)])
def test_odd_pictures_still_give_a_view(size):
    for view in draws(Augmentation(), 30, size):
        left, top, width, height = view.box
        assert 0 <= left < left + width <= size[1]
        assert 0 <= top < top + height <= size[0]
    assert view_picture(view, picture(*size), 16).shape == (16, 16, 3)


def test_probabilities():
    views = draws(Augmentation(jitter=0.8, grey=0.2, flip=0.5), 2000)
    for share, expected in (
        (np.mean([bool(view.jitter) for view in views]), 0.8),
        (np.mean([view.grey for view in views]), 0.2),
        (np.mean([view.flip for view in views]), 0.5),
    ):
        assert abs(share - expected) < 0.04
    first = [view.jitter[0][0] for view in views if view.jitter]
    assert all(0.2 < first.count(name) / len(first) < 0.3 for name in ("brightness", "contrast", "saturation", "hue"))
    amounts = {name: [a for view in views for n, a in view.jitter if n == name] for name in ("brightness", "hue")}
    assert 0.6 <= min(amounts["brightness"]) < 0.63 < 1.37 < max(amounts["brightness"]) <= 1.4
    assert -0.1 <= min(amounts["hue"]) < -0.095 < 0.095 < max(amounts["hue"]) <= 0.1


def test_what_is_switched_off_does_not_happen():
    still = Augmentation(brightness=0, contrast=0, saturation=0, hue=0, grey=0, flip=0)
    assert all(not (view.jitter or view.grey or view.flip) for view in draws(still, 50))


@pytest.mark.parametrize("area", [(0.5,), (0.6, 0.4), (0.0, 1.0), (0.1, 0.2, 0.3)])
def test_ranges_that_are_none_are_refused(area):
    with pytest.raises(SettingError, match=r"augment\.area=.*two numbers"):
        Augmentation(area=area)
