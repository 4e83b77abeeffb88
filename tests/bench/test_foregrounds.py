"""Objects of a split on disk equal those pooled pixel by pixel, at own size and stretched, with padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from bench import foregrounds
from bench.backbone import Backbone
from bench.cache import Cache
from bench.datasets import open_dataset
from bench.errors import DatasetError, MismatchError, SettingError
from bench.features import Runtime, SplitMaps
from bench.labels import CellLabels
from bench.metrics import count_pixels
from bench.records import Tap
from bench.settings import InputSettings, ObjectSettings

TAPS = [
    Tap(name="colour", channels=3, stride=16),
    Tap(name="logit", channels=1, stride=8, kind="foreground_logit"),
]


class Network(torch.nn.Module):
    """Mean colours, and how red a cell is."""

    def forward(self, x):
        red = functional.avg_pool2d(x[:, :1] - x[:, 2:], 8)
        return {"colour": functional.avg_pool2d(x, 16), "logit": red / 40}


def maps_of(dataset, tmp_path, size, taps=("colour", "logit")):
    adapter = Backbone(Network(), taps=TAPS, mean=(0, 0, 0), std=(1, 1, 1), scale=1, default_tap="colour", pad_to=16)
    return SplitMaps(
        adapter,
        dataset,
        dataset.names("val"),
        taps=taps,
        inputs=InputSettings(size=size),
        runtime=Runtime(),
        cache=Cache(tmp_path / "cache"),
        record={"size": size, "taps": taps},
    )


def upsampled(block, grid, stride, pixels):
    """A map at the input's resolution, by torch in float64, without the padding."""
    map_ = torch.from_numpy(block.astype(np.float64).reshape(*grid, -1)).permute(2, 0, 1)[None]
    full = functional.interpolate(map_, [side * stride for side in grid], mode="bilinear", align_corners=False)
    return full[0, :, : pixels[0], : pixels[1]].numpy()


def nearest(mask, size):
    full = functional.interpolate(torch.from_numpy(mask)[None, None].double(), size=size, mode="nearest-exact")
    return full[0, 0].numpy() > 0


@pytest.mark.parametrize("size", ["native", "56x40", "128"])
@pytest.mark.parametrize("pooling", ["mean", "logit"])
def test_objects_of_the_networks_foreground(voc, tmp_path, size, pooling):
    dataset = open_dataset(str(voc))
    maps = maps_of(dataset, tmp_path, size)
    how = ObjectSettings(foreground="adapter", threshold=0.3, pooling=pooling)
    found = foregrounds.collect(dataset, maps, how, label=dataset.label)
    painted = list(foregrounds.masks(dataset, maps, how))
    for index, (colour, logit) in enumerate(maps.together()):
        extent = maps.extents[index]
        weights = upsampled(logit, maps.layouts[1].grids[index], 8, extent)[0]
        mask = weights > 0.3
        assert 0.02 < mask.mean() < 0.5
        weights = np.where(mask, 1 / mask.sum() if pooling == "mean" else weights, 0)
        wanted = (upsampled(colour, maps.grids[index], 16, extent) * weights).sum((1, 2))
        np.testing.assert_allclose(found.vectors[index], wanted, rtol=2e-6)
        own = nearest(mask, maps.sizes[index])
        assert np.array_equal(painted[index], own)
        label = dataset.label(maps.names[index])
        assert np.array_equal(found.tables[index], count_pixels(own.astype(np.int64), label, 2, 3))


@pytest.fixture
def masked(voc):
    (voc / "saliency_left").mkdir()
    for path in (voc / "SegmentationClass").glob("*.png"):
        mask = np.array(Image.open(path)) == 1
        Image.fromarray((255 * mask).astype(np.uint8)).save(voc / "saliency_left" / path.name)
    return open_dataset(str(voc))


def test_objects_of_mask_files_keep_the_masks_own_pixels(masked, tmp_path):
    how = ObjectSettings(foreground="masks:left")
    for size in ("native", "112x96"):
        maps = maps_of(masked, tmp_path, size)
        found = foregrounds.collect(masked, maps, how, label=masked.label)
        for index, name in enumerate(maps.names):
            assert found.tables[index, 1].tolist() == [0, int((masked.label(name) == 1).sum()), 0, 0]
            # the left blob of the pictures is the reddish one
            assert found.vectors[index, 0] > found.vectors[index, 2] + 10


def test_cells_of_a_foreground_hold_all_of_its_pixels(masked, tmp_path):
    how = ObjectSettings(foreground="masks:left")
    maps = maps_of(masked, tmp_path, "56x40")
    cells = foregrounds.cells(masked, maps, how)
    masks = list(foregrounds.masks(masked, maps, how))
    ids = [np.append(np.where(held, 1, 2), 0) for held in cells]
    counts = CellLabels.read(masked, maps, maps.names, masks).count(ids, 3).dense()
    assert counts[:, 2].sum() == 0
    for index, (name, mask) in enumerate(zip(maps.names, masks, strict=True)):
        wanted = count_pixels(mask.astype(np.int64), masked.label(name), 2, 3)
        assert counts[index, :2].tolist() == wanted.tolist()


def test_what_is_not_there_is_named(masked, tmp_path):
    names = masked.names("val")
    foregrounds.check_masks(masked, names, "masks:left")
    foregrounds.check_masks(masked, names, "auto")
    with pytest.raises(SettingError, match=r"no mask set 'lefd'. Did you mean 'left'\?.*: left; masks lie in"):
        foregrounds.check_masks(masked, names, "masks:lefd")
    (masked.root / "saliency_left" / "val2.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 6 pictures have no mask in the set left.*'val2'"):
        foregrounds.check_masks(masked, names, "masks:left")
    alone = maps_of(masked, tmp_path, "native", taps=("colour",))
    with pytest.raises(MismatchError, match="no foreground of its own"):
        foregrounds.collect(masked, alone, replace(ObjectSettings(), foreground="adapter"), label=None)
