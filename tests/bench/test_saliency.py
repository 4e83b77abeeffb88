"""Cutting masks from maps, and the reading of pictures, against sums written out and OpenCV's contours."""

from __future__ import annotations

import numpy as np
import pytest

from bench.saliency import CutSettings, cut, network_input, stretch_to_bytes, stretch_to_size


def drawn(text: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in text.split()])


def shown(mask: np.ndarray | None) -> str | None:
    return None if mask is None else " ".join("".join(".#"[int(cell)] for cell in row) for row in mask)


CASES = {
    "a small hole takes the ring around it along, a small piece goes": (
        12,
        "########## ########## ###..##### ###.###### ########## ########## .......... ........##",
        "########## ########## ###..##### ###.###### ########## ########## .......... ..........",
        "########## ###..##### ##....#### ##...##### ###.###### ########## .......... ..........",
    ),
    "so do the islands in it": (
        43,
        "######### ######### ##.....## ##.##..## ##.##..## ##.....## ######### ......... " + 5 * " #########",
        "######### ######### ##.....## ##.....## ##.....## ##.....## ######### ......... " + 5 * " #########",
        "######### ##.....## #.......# #.......# #.......# #.......# ##.....## ......... " + 5 * " #########",
    ),
    "a thin ring counts with what it encloses": (
        20,
        "#####.... #...#..## #...#..## #...#.... #####.... ......... ######### ######### #########",
        "......... ......... ......... ......... ......... ......... ######### ######### #########",
        "#####.... #...#.... #...#.... #...#.... #####.... ......... ######### ######### #########",
    ),
    "corners connect": (
        6,
        "##..... ##..... ..#.... ...##.. ...##.. ....... #......",
        "##..... ##..... ..#.... ...##.. ...##.. ....... .......",
        "##..... ##..... ..#.... ...##.. ...##.. ....... .......",
    ),
    "too little is left": (5, "##... ##... ..... ...## ...##", None, None),
}
"""Least pixels of a piece, the mask, and what is left of it: by components (counted by hand), and by OpenCV's
findContours (tree, simple chains) and drawContours (filled)."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cleaning", ["components", "released-code"])
def test_small_pieces_go(case, cleaning):
    least, text, *left = CASES[case]
    mask = drawn(text)
    saliency = np.where(mask, 200, 30).astype(np.uint8)
    found = cut(saliency, CutSettings(smallest=least / mask.size, cleaning=cleaning))
    wanted = left[cleaning == "released-code"]
    assert shown(found) == (wanted and shown(drawn(wanted)))


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [128, 255]), (0.0, [1, 127, 128, 255]), (0.9, [255])])
def test_the_threshold_is_a_share_of_255_that_must_be_passed(threshold, kept):
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    mask = cut(values, CutSettings(threshold=threshold, smallest=0.0))
    assert values[mask].tolist() == kept


def test_nothing_is_no_mask():
    assert cut(np.zeros((4, 4), np.uint8), CutSettings(smallest=0.0)) is None
    assert cut(np.full((4, 4), 255, np.uint8), CutSettings(threshold=1.0)) is None


def test_one_percent_is_enough():
    saliency = np.zeros((10, 20), np.uint8)
    saliency[0, :2] = 255
    assert np.count_nonzero(cut(saliency, CutSettings())) == 2
    saliency[0, 1] = 0
    assert cut(saliency, CutSettings()) is None


def plainly_resized(picture: np.ndarray, size: int) -> np.ndarray:
    """Bilinear at pixel centres, one sum per pixel, nothing averaged."""
    result = np.zeros((size, size, 3))
    for i, j in np.ndindex(size, size):
        y, x = ((k + 0.5) * side / size - 0.5 for k, side in zip((i, j), picture.shape, strict=False))
        top, left = int(y), int(x)
        for row, column in ((top, left), (top + 1, left), (top, left + 1), (top + 1, left + 1)):
            weight = (1 - abs(y - row)) * (1 - abs(x - column))
            if weight > 0:
                result[i, j] += weight * picture[row, column]
    return result


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_network_reads_what_is_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 180, (37, 52, 3), np.uint8)
    values = plainly_resized(picture, 16)
    wanted = (values / values.max() - MEAN) / STD
    seen = network_input(picture, 16, MEAN, STD)
    assert (seen.dtype, seen.shape) == (np.float32, (3, 16, 16))
    np.testing.assert_allclose(seen, wanted.transpose(2, 0, 1), atol=1e-5)


def test_grey_is_read_with_the_statistics_of_red():
    grey = np.repeat(np.random.default_rng(0).integers(0, 180, (20, 20, 1), np.uint8), 3, 2)
    seen = network_input(grey, 8, MEAN, STD)
    values = plainly_resized(grey, 8)[..., 0]
    for channel in seen:
        np.testing.assert_allclose(channel, (values / values.max() - MEAN[0]) / STD[0], atol=1e-5)


def test_black_stays_black():
    seen = network_input(np.zeros((9, 9, 3), np.uint8), 8, MEAN, STD)
    np.testing.assert_allclose(seen, np.full((3, 8, 8), -MEAN[0] / STD[0]), rtol=1e-6)


def test_maps_are_stretched_and_cut_off():
    assert stretch_to_bytes(np.array([[0.2, 0.4, 0.6]], np.float32)).tolist() == [[0, 127, 255]]
    assert stretch_to_bytes(np.full((2, 2), 0.7, np.float32)).tolist() == [[0, 0], [0, 0]]


def test_maps_take_the_size_of_their_picture():
    saliency = np.array([[0, 200]], np.uint8)
    wide = stretch_to_size(saliency, (2, 8))
    assert wide.tolist() == [[0, 0, 25, 75, 125, 175, 200, 200]] * 2
    assert stretch_to_size(wide, (1, 2)).shape == (1, 2)
