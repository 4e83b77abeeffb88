"""Warped pairs: picture and label alike, against Pillow's and SciPy's own turns, and as pure functions of their key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from bench.batches import generator
from bench.images import resize_picture
from bench.warp import Drawn, Warp, draw, warp_label, warp_picture

HEIGHT, WIDTH, BLOCK, BORDER = 90, 120, 15, 77
BLOCKS = np.random.default_rng(0).permutation(HEIGHT // BLOCK * (WIDTH // BLOCK)).reshape(HEIGHT // BLOCK, -1)


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A picture of its own coordinates, red 2 · column, green 2 · row, blue full; a label of blocks that differ."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack((2 * columns, 2 * rows, np.full_like(rows, 255)), 2).astype(np.uint8)
    return picture, BLOCKS[rows // BLOCK, columns // BLOCK].astype(np.uint8)


def told(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label that a warped picture of coordinates shows, and where that is clear: not beside a block's edge."""
    row, column = (picture[..., channel] / 2 + 0.5 for channel in (1, 0))
    clear = np.ones(picture.shape[:2], bool)
    for place in (row, column):
        clear &= np.abs(place / BLOCK - np.round(place / BLOCK)) > 1.6 / BLOCK
    down, across = (
        np.minimum(place // BLOCK, limit - 1).astype(int)
        for place, limit in zip((row, column), BLOCKS.shape, strict=True)
    )
    return BLOCKS[down, across], clear


def drawn(**changes: Any) -> Drawn:
    still = {"flip": False, "angle": 0.0, "zoom": 1.0, "box": None, "scaled": (HEIGHT, WIDTH), "corner": (0, 0)}
    return Drawn(**still | changes)


def noise(height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Smooth colours, so that filters differ little, and labels without structure."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    picture = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return picture, rng.integers(0, 9, (height, width), np.uint8)


WARPS = {
    "flip": Warp(flip=1),
    "turn": Warp(rotate=30),
    "zoom": Warp(zoom=(0.6, 1.7)),
    "crop": Warp(area=(0.3, 0.8)),
    "crop, stretched": Warp(area=(0.3, 0.8), size=(100, 100)),
    "scale and crop": Warp(scale=(0.5, 1.6), crop=80),
    "the released probe": Warp(flip=0.5, rotate=5, zoom=(0.75, 1.25), size=(128, 128)),
    "everything, bilinear": Warp(
        flip=0.5, rotate=40, zoom=(0.7, 1.4), area=(0.4, 1), size=(96, 110), scale=(0.6, 1.5), crop=90,
        interpolation="bilinear",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARPS)
def test_picture_and_label_are_warped_alike(name):
    """The label that the warped picture tells is the warped label, and what came from outside is nobody's."""
    picture, label = pair()
    seen = 0
    for index in range(12):
        change = draw(WARPS[name], label.shape, generator(5, index))
        shown, found = warp_picture(WARPS[name], change, picture), warp_label(WARPS[name], change, label)
        assert (shown.dtype, found.dtype, shown.shape[:2]) == (np.uint8, np.uint8, found.shape)
        outside = ndimage.binary_dilation(shown[..., 2] < 250, iterations=3)
        wanted, clear = told(shown)
        clear &= ~outside
        seen += np.count_nonzero(clear)
        assert np.array_equal(found[clear], wanted[clear])
        void = ndimage.binary_erosion(shown[..., 2] < 110, iterations=2)
        assert (found[void] == 255).all()
        assert set(np.unique(found)) <= {*BLOCKS.ravel(), 255}
    assert seen > 12 * 1500


@pytest.mark.parametrize("changes", [{"angle": -12.0}, {"zoom": 1 / 1.2}, {"flip": True}])
def test_a_label_that_is_warped_otherwise_is_noticed(changes):
    """The picture of coordinates tells a label that was turned the other way, or mirrored alone."""
    picture, label = pair()
    wanted, clear = told(warp_picture(Warp(), drawn(angle=12.0, zoom=1.2), picture))
    right = warp_label(Warp(), drawn(angle=12.0, zoom=1.2), label)
    wrong = warp_label(Warp(), drawn(**{"angle": 12.0, "zoom": 1.2} | changes), label)
    assert np.array_equal(right[clear], wanted[clear])
    assert np.mean(wrong[clear] == wanted[clear]) < 0.9


def test_nothing_drawn_changes_nothing():
    picture, label = noise()
    change = draw(Warp(), label.shape, generator(0))
    assert change == drawn()
    assert np.array_equal(warp_picture(Warp(), change, picture), picture)
    assert np.array_equal(warp_label(Warp(), change, label), label)


@pytest.mark.parametrize(("angle", "turns"), [(90.0, 1), (180.0, 2), (-90.0, 3)])
def test_right_angles_are_counter_clockwise_and_exact(angle, turns):
    picture, label = noise(64, 64)
    change = drawn(angle=angle, scaled=(64, 64))
    shown = warp_picture(Warp(), change, picture).astype(int)
    assert np.abs(shown - np.rot90(picture, turns)).max() <= 1  # Pillow's bicubic filter cuts off to whole numbers
    assert np.array_equal(warp_label(Warp(), change, label), np.rot90(label, turns))


def test_a_mirrored_pair_is_the_mirror_image():
    picture, label = noise()
    change = drawn(flip=True)
    assert np.array_equal(warp_picture(Warp(), change, picture), np.fliplr(picture))
    assert np.array_equal(warp_label(Warp(), change, label), np.fliplr(label))


@pytest.mark.parametrize("angle", [5.0, -3.7, 28.0])
def test_turns_are_pillows(angle):
    picture, label = noise()
    shown = Image.fromarray(picture).rotate(angle, Image.Resampling.BICUBIC)
    found = Image.fromarray(label).rotate(angle, Image.Resampling.NEAREST, fillcolor=BORDER)
    warp = Warp(border=BORDER)
    assert np.abs(warp_picture(warp, drawn(angle=angle), picture).astype(int) - np.array(shown)).max() <= 2
    assert np.mean(warp_label(warp, drawn(angle=angle), label) != np.array(found)) < 0.001


@pytest.mark.parametrize(("angle", "zoom"), [(0.0, 1.23), (0.0, 0.77), (5.0, 0.8), (-5.0, 1.2)])
def test_turn_and_zoom_are_scipys(angle, zoom):
    """About the centre, one matrix: a larger factor shows less of the picture, larger."""
    picture, label = noise()
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / zoom  # rows, columns
    centre = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2])
    how = {"matrix": matrix, "offset": centre - matrix @ centre, "mode": "grid-constant"}
    warp, change = Warp(border=BORDER, interpolation="bilinear"), drawn(angle=angle, zoom=zoom)
    wanted = ndimage.affine_transform(label, **how, order=0, cval=BORDER)
    assert np.mean(warp_label(warp, change, label) != wanted) < 0.005
    shown = warp_picture(warp, change, picture)
    for channel in range(3):
        plane = ndimage.affine_transform(picture[..., channel].astype(float), **how, order=1, cval=-1)
        inside = ndimage.binary_erosion(plane >= 0, iterations=2)
        assert np.abs(shown[..., channel] - plane)[inside].max() <= 1.5


def test_the_border_is_black_and_has_the_label_that_was_asked_for():
    picture, label = (np.full((HEIGHT, WIDTH, 3), 200, np.uint8), np.full((HEIGHT, WIDTH), 3, np.uint8))
    change = drawn(zoom=0.5)
    black = (warp_picture(Warp(), change, picture) == 0).all(2)
    assert abs(black.mean() - 0.75) < 0.03
    for warp, border in ((Warp(), 255), (Warp(border=0), 0), (Warp(border=BORDER), BORDER)):
        found = warp_label(warp, change, label)
        assert set(np.unique(found)) == {3, border}
        assert np.mean((found == border) != black) < 0.01


def test_a_crop_is_cut_out_and_stretched():
    picture, label = noise()
    change = drawn(box=(20, 10, 60, 50), scaled=(76, 104))
    warp = Warp(area=(0.2, 1), size=(76, 104))
    inside = Image.fromarray(picture[10:60, 20:80])
    assert np.array_equal(
        warp_picture(warp, change, picture), np.array(inside.resize((104, 76), Image.Resampling.BICUBIC))
    )
    rows, columns = (np.floor((np.arange(n) + 0.5) * side / n).astype(int) for n, side in ((76, 50), (104, 60)))
    assert np.array_equal(warp_label(warp, change, label), label[10:60, 20:80][rows][:, columns])


@pytest.mark.parametrize(
    ("scaled", "corner"),
    [((90, 120), (5, 30)), ((90, 120), (-30, 10)), ((50, 60), (-10, -20)), ((180, 240), (80, 120))],
)
def test_a_window_beyond_the_picture_is_void_and_mean_colour(scaled, corner):
    picture, label = noise()
    side, room = 80, 100
    change = drawn(scaled=scaled, corner=corner)
    larger = resize_picture(picture, scaled, "bicubic")
    wide = np.pad(larger.astype(int), ((room, room), (room, room), (0, 0)), constant_values=-1)
    window = wide[room + corner[0] :, room + corner[1] :][:side, :side]
    shown = warp_picture(Warp(crop=side), change, picture)
    assert np.array_equal(shown, np.where(window < 0, (124, 116, 104), window))
    found = warp_label(Warp(crop=side), change, label)
    assert np.array_equal(found == 255, (window < 0).all(2))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def draws(warp: Warp, count: int = 400, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[Drawn]:
    return [draw(warp, size, generator(2, index)) for index in range(count)]


def test_a_warp_is_a_function_of_its_key():
    warp = WARPS["everything, bilinear"]
    assert draw(warp, (90, 120), generator(3, 1, 4)) == draw(warp, (90, 120), generator(3, 1, 4))
    assert len({draw(warp, (90, 120), generator(*key)) for key in [(3,), (3, 0), (3, 0, 0), (0, 3)]}) == 4


def test_flip_angle_and_zoom_are_drawn_evenly_from_their_ranges():
    found = draws(Warp(flip=0.3, rotate=5, zoom=(0.75, 1.25)))
    assert abs(np.mean([change.flip for change in found]) - 0.3) < 0.08
    for values, (low, high) in (
        ([change.angle for change in found], (-5, 5)),
        ([change.zoom for change in found], (0.75, 1.25)),
    ):
        spread = high - low
        assert low <= min(values) < low + 0.02 * spread
        assert high - 0.02 * spread < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.05 * spread
    assert {change.box for change in found} == {None}


def test_crops_have_the_area_that_was_asked_for():
    found = draws(Warp(area=(0.2, 0.5), size=(64, 64)))
    boxes = np.array([change.box for change in found])
    shares = boxes[:, 2] * boxes[:, 3] / (HEIGHT * WIDTH)
    assert 0.19 < shares.min() < 0.22
    assert 0.48 < shares.max() < 0.51
    assert abs(shares.mean() - 0.35) < 0.02
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= WIDTH).all()
    assert (boxes[:, 1] + boxes[:, 3] <= HEIGHT).all()
    ratios = boxes[:, 2] / boxes[:, 3]
    assert 0.72 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.37
    assert {change.scaled for change in found} == {(64, 64)}


def test_scale_comes_before_the_crop():
    found = draws(Warp(scale=(0.5, 2), crop=100))
    factors = np.array([change.scaled for change in found]) / (HEIGHT, WIDTH)
    assert np.abs(factors[:, 0] - factors[:, 1]).max() < 0.01
    assert abs(factors.mean() - 1.25) < 0.06
    for change in found:
        for side, start in zip(change.scaled, change.corner, strict=True):
            assert min(side - 100, 0) <= start <= max(side - 100, 0)
    tops = [change.corner[0] for change in found]
    assert min(tops) < -40
    assert max(tops) > 60
