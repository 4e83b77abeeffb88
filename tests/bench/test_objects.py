"""Pooling over a foreground at full resolution equals pooling the upsampled map; labels, majorities, neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from bench.objects import Frame, foreground, gather, majority, nearest, tally


def upsampled(
    block: np.ndarray, cells: tuple[int, int], padded: tuple[int, int], pixels: tuple[int, int]
) -> np.ndarray:
    """What torch gives, float64 (D, H, W), without the padding."""
    map_ = torch.from_numpy(block.reshape(*cells, -1)).permute(2, 0, 1)[None]
    return functional.interpolate(map_, padded, mode="bilinear", align_corners=False)[0].numpy()[
        :, : pixels[0], : pixels[1]
    ]


@pytest.mark.parametrize(
    ("pixels", "cells", "stride"),
    [((64, 48), (8, 6), 8), ((61, 43), (8, 6), 8), ((50, 33), (4, 3), 16), ((9, 7), (9, 7), 1)],
)
def test_upsampling_and_pooling_are_torchs(pixels, cells, stride):
    rng = np.random.default_rng(0)
    block = rng.standard_normal((cells[0] * cells[1], 5))
    weights = rng.random(pixels) * (rng.random(pixels) < 0.4)
    padded = (cells[0] * stride, cells[1] * stride)
    frame = Frame.of(pixels, pixels, cells, stride)
    wanted = upsampled(block, cells, padded, pixels)
    np.testing.assert_allclose(frame.upsample(block[:, 0].reshape(cells)), wanted[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(frame.pool(weights, block), (wanted * weights).sum((1, 2)), rtol=1e-11, atol=1e-11)


def test_a_mask_of_the_pictures_own_size_lies_over_a_stretched_map():
    """A mask of twice the input's size weighs as its 2×2 means do: interpolation is linear between cell centres."""
    rng = np.random.default_rng(1)
    block, mask = rng.standard_normal((12, 3)), rng.random((32, 48)) < 0.5
    at_own_size = Frame.of((32, 48), (16, 24), (2, 3), 8)
    seen = at_own_size.upsample(block[:6, 0].reshape(2, 3))
    centres = np.array([(y + 0.5) / 16 - 0.5 for y in range(32)])
    assert seen[0, 0] == block[0, 0]
    np.testing.assert_allclose(seen[17, 0], np.interp(centres[17], [0, 1], block[[0, 3], 0]))
    assert at_own_size.pool(mask, block[:6]).shape == (3,)


def test_an_offset_moves_the_cells():
    frame = Frame.of((12, 12), (12, 12), (4, 4), 2, 2)
    ramp = np.arange(4.0)[:, None].repeat(4, 1)
    np.testing.assert_allclose(frame.upsample(ramp)[:, 0], np.clip((np.arange(12) + 0.5 - 2) / 2 - 0.5, 0, 3))


def test_weights_are_the_mask_or_the_logit_above_the_threshold():
    logits = np.array([[-1.0, 0.4], [0.5, 2.0]])
    frame = Frame.of((2, 2), (2, 2), (2, 2), 1)
    mask, weights = foreground(logits, frame, 0.5, "mean")
    assert mask.tolist() == weights.tolist() == [[False, False], [False, True]]
    mask, weights = foreground(logits, frame, 0.0, "logit")
    assert mask.tolist() == [[False, True], [True, True]]
    assert weights.tolist() == [[0.0, 0.4], [0.5, 2.0]]


def test_labels_are_counted_outside_and_inside():
    mask = np.array([[True, False, True], [False, False, True]])
    label = np.array([[2, 0, 255], [0, 1, 2]], np.uint8)
    assert tally(mask, label, 3).tolist() == [[2, 1, 0, 0], [0, 0, 2, 1]]


def test_objects_are_gathered_with_zeros_for_pictures_without():
    objects = gather([np.array([1.0, 2.0]), None], 2, None)
    assert objects.vectors.tolist() == [[1, 2], [0, 0]]
    assert objects.vectors.dtype == np.float32
    assert objects.found.tolist() == [True, False]


@pytest.mark.parametrize(("background", "expected"), [(0, [2, 3, -1, -1, 1]), (None, [2, 3, 0, -1, 0])])
def test_the_majority_leaves_out_background_and_void_and_takes_the_larger_of_equals(background, expected):
    inside = np.array([[0, 1, 5, 0, 9], [0, 2, 2, 2, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 4], [6, 1, 0, 0, 0]])
    assert majority(inside, background).tolist() == expected


def test_neighbours_are_by_cosine():
    rng = np.random.default_rng(2)
    queries, keys = (
        rng.standard_normal((n, 8)).astype(np.float32) * rng.uniform(0.1, 9, (n, 1)).astype(np.float32)
        for n in (30, 20)
    )
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        keys / np.linalg.norm(keys, axis=1, keepdims=True)
    ).T
    assert nearest(queries, keys).tolist() == cosine.argmax(1).tolist()
