"""Maps stream in list order, whatever batches, threads and cache do; labels are counted by cell without loss."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from bench import images
from bench.backbone import Backbone
from bench.cache import Cache
from bench.datasets import open_dataset
from bench.errors import FeatureError
from bench.features import Runtime, SplitMaps, grid
from bench.labels import CellLabels
from bench.metrics import count_pixels
from bench.records import Tap
from bench.settings import InputSettings


class Means(torch.nn.Module):
    """Mean colour of 8×8 cells: easy to compute by hand."""

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 8)


def backbone(**changes):
    given = {"stride": 8, "channels": 3, "mean": (0, 0, 0), "std": (1, 1, 1)} | changes
    return Backbone(changes.pop("body", Means()), **{key: value for key, value in given.items() if key != "body"})


def maps_of(
    voc,
    tmp_path,
    *,
    adapter=None,
    runtime=None,
    size="native",
    record=None,
    cache=None,
    dtype="float32",
    taps=("last",),
):
    dataset = open_dataset(str(voc))
    return SplitMaps(
        adapter or backbone(),
        dataset,
        dataset.names("val"),
        taps=taps,
        inputs=InputSettings(size=size, dtype=dtype),
        runtime=runtime or Runtime(),
        cache=cache or Cache(tmp_path / "cache"),
        record=record or {"size": size, "dtype": dtype},
    )


@pytest.mark.parametrize(
    ("tap", "picture", "extent", "pad", "expected"),
    [
        (Tap(name="a", channels=1, stride=8), (375, 500), (375, 500), 8, (47, 63)),
        (Tap(name="a", channels=1, stride=16), (375, 500), (512, 512), 32, (32, 32)),
        (Tap(name="a", channels=1, stride=14), (100, 30), (100, 30), 14, (8, 3)),
        (Tap(name="iic trunk", channels=1, stride=2, offset=4), (128, 128), (128, 128), 2, (60, 60)),
        (Tap(name="iic head", channels=1, stride=2, offset=2), (128, 128), (128, 128), 2, (62, 62)),
        (Tap(name="labels", channels=1, stride=1, frame="label"), (375, 500), (512, 512), 1, (375, 500)),
    ],
)
def test_grids(tap, picture, extent, pad, expected):
    assert grid(tap, picture, extent, pad) == expected


def test_maps_are_what_the_network_gives_in_list_order(voc, tmp_path):
    maps = maps_of(voc, tmp_path)
    dataset = open_dataset(str(voc))
    blocks = list(maps)
    assert len(blocks) == len(maps.names) == 6
    assert sum(map(len, blocks)) == maps.vectors
    for name, (h, w), block in zip(maps.names, maps.grids, blocks, strict=True):
        picture = dataset.picture(name).astype(np.float64) / 255
        picture = np.pad(picture, ((0, h * 8 - len(picture)), (0, w * 8 - picture.shape[1]), (0, 0)), mode="edge")
        expected = picture.reshape(h, 8, w, 8, 3).mean((1, 3)).reshape(-1, 3)
        np.testing.assert_allclose(block, expected, atol=1e-6)


@pytest.mark.parametrize("size", ["native", "40x56"])
def test_second_pass_reads_what_the_first_computed(voc, tmp_path, size, monkeypatch):
    maps = maps_of(voc, tmp_path, size=size)
    first = [block.copy() for block in maps]
    monkeypatch.setattr(SplitMaps, "compute", lambda self: pytest.fail("computed again"))
    for again in (maps, maps_of(voc, tmp_path, size=size)):
        assert again.cached
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


class Two(torch.nn.Module):
    """Mean colours of 8×8 cells, and the brightness of 4×4 ones."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        grey = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4)
        return {"last": torch.nn.functional.avg_pool2d(x, 8), "grey": grey}


def test_several_taps_come_from_one_pass_and_one_entry(voc, tmp_path):
    network = Two()
    taps = [Tap(name="last", channels=3, stride=8), Tap(name="grey", channels=1, stride=4, kind="foreground_logit")]
    adapter = Backbone(network, taps=taps, mean=(0, 0, 0), std=(1, 1, 1), default_tap="last", pad_to=8)
    maps = maps_of(voc, tmp_path, adapter=adapter, taps=("last", "grey"), runtime=Runtime(batch_size=1))
    first = [tuple(block.copy() for block in blocks) for blocks in maps.together()]
    assert network.passes == len(maps.names)
    assert [layout.tap.name for layout in maps.layouts] == ["last", "grey"]
    assert maps.nbytes == 4 * sum(3 * len(main) + len(grey) for main, grey in first)
    again = list(maps.together())
    alone = list(maps)
    assert network.passes == len(maps.names)
    for index, (main, grey) in enumerate(first):
        assert np.array_equal(main, again[index][0])
        assert np.array_equal(main, alone[index])
        assert np.array_equal(grey, again[index][1])
        h, w = maps.grids[index]
        rows, columns = (-(-side // 4) for side in maps.sizes[index])
        assert maps.layouts[1].grids[index] == (rows, columns)
        # of the cells of 8×8 that lie in the picture, each is the mean of four of the others
        whole = grey.reshape(rows, columns)[: rows // 2 * 2, : columns // 2 * 2]
        whole = whole.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
        np.testing.assert_allclose(whole, main.mean(1).reshape(h, w)[: rows // 2, : columns // 2], atol=1e-6)


def test_an_abandoned_pass_leaves_nothing_in_the_cache(voc, tmp_path):
    maps = maps_of(voc, tmp_path)
    stream = iter(maps)
    next(stream)
    stream.close()
    assert not maps.cached
    assert list((tmp_path / "cache" / "entries").iterdir()) == []


def test_a_full_disk_ends_the_cache_and_not_the_run(voc, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.cache.Writer.append", full)
    maps = maps_of(voc, tmp_path)
    with caplog.at_level(logging.WARNING, "bench"):
        assert len(list(maps)) == 6
    assert "going on without it" in caplog.text
    assert len(list(maps)) == 6


def test_half_precision_is_rounded_with_and_without_the_cache(voc, tmp_path, monkeypatch):
    kept = maps_of(voc, tmp_path, dtype="float16")
    list(kept)
    from_cache = list(kept)
    monkeypatch.setattr(Cache, "room_for", lambda self, nbytes: False)
    computed = list(maps_of(voc, tmp_path, dtype="float16", cache=Cache(tmp_path / "other")))
    for a, b in zip(from_cache, computed, strict=True):
        assert a.dtype == np.float32
        assert np.array_equal(a, b)
        assert np.array_equal(a, a.astype(np.float16))


def test_a_map_of_another_shape_than_promised_names_the_picture(voc, tmp_path):
    with pytest.raises(FeatureError, match=r"val0 is a grid of \(\d+, \d+\) of width 3, expected a grid"):
        list(maps_of(voc, tmp_path, adapter=backbone(stride=4, pad_to=8)))


class Pooled(torch.nn.Module):
    """Mean colour of 4×4 cells, for inputs that are padded to multiples of 32."""

    def forward(self, x):
        assert all(side % 32 == 0 for side in x.shape[-2:])
        return torch.nn.functional.avg_pool2d(x, 4)


@pytest.mark.parametrize("size", ["native", "40x56"])
def test_cells_that_lie_wholly_in_the_padding_are_left_out(voc, tmp_path, size):
    adapter = backbone(body=Pooled(), stride=4, pad_to=32)
    maps = maps_of(voc, tmp_path, adapter=adapter, size=size)
    assert maps.grids == tuple((-(-height // 4), -(-width // 4)) for height, width in maps.extents)
    assert maps.vectors == sum(h * w for h, w in maps.grids)
    assert maps.nbytes == maps.vectors * 3 * 4
    assert any(-(-height // 32) * 8 > h for (height, _), (h, _) in zip(maps.extents, maps.grids, strict=True))
    blocks, dataset = list(maps), open_dataset(str(voc))
    held = maps.hold()
    for index, (name, (h, w)) in enumerate(zip(maps.names, maps.grids, strict=True)):
        picture = images.resize_picture(dataset.picture(name), maps.extents[index], "bicubic").astype(np.float64) / 255
        picture = np.pad(picture, ((0, h * 4 - len(picture)), (0, w * 4 - picture.shape[1]), (0, 0)), mode="edge")
        expected = picture.reshape(h, 4, w, 4, 3).mean((1, 3)).reshape(-1, 3)
        np.testing.assert_allclose(blocks[index], expected, atol=1e-6)
        assert np.array_equal(held.block(index), blocks[index])
        rows, columns = maps.cells(index)
        assert (rows.max(), columns.max()) == (h - 1, w - 1)  # each cell that is left has a pixel, none is missing


@pytest.mark.parametrize(("scale", "refused"), [(1e20, False), (1e-25, False), (1e37, True), (1e-40, False)])
def test_values_that_sums_cannot_hold_are_refused_with_the_name_of_the_picture(voc, tmp_path, scale, refused):
    class Scaled(Means):
        def forward(self, x):
            return super().forward(x) * scale

    maps = maps_of(voc, tmp_path, adapter=backbone(body=Scaled()))
    if not refused:
        assert len(list(maps)) == 6
        return
    with pytest.raises(FeatureError, match=r"picture 'val0' holds values of \d\.\de\+3\d, expected at most 1\.3e\+30"):
        list(maps)


def test_nan_names_the_picture(voc, tmp_path):
    class Bad(Means):
        def forward(self, x):
            out = super().forward(x)
            return torch.where(out > 0.9, torch.nan, out) if (x > 0.9).all(1).any() else out

    dataset = open_dataset(str(voc))
    from PIL import Image

    path = voc / "JPEGImages" / "val3.jpg"
    Image.fromarray(np.full(dataset.picture("val3").shape, 255, np.uint8)).save(path)
    with pytest.raises(FeatureError, match=r"'val3' holds NaN"):
        list(maps_of(voc, tmp_path, adapter=backbone(body=Bad())))


@pytest.mark.parametrize("size", ["native", "40x56", "96"])
def test_counting_by_cells_equals_counting_pixels(voc, tmp_path, size):
    """Ids upsampled by torch over the padded input, cropped and brought back, then counted one by one."""
    maps = maps_of(voc, tmp_path, size=size)
    dataset = open_dataset(str(voc))
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 5, shape) for shape in maps.grids]
    counts = CellLabels.read(dataset, maps, maps.names).count(ids, 5).dense()
    for index, name in enumerate(maps.names):
        padded = np.kron(ids[index], np.ones((8, 8), int))
        seen = padded[: maps.extents[index][0], : maps.extents[index][1]]
        label = dataset.label(name)
        full = torch.nn.functional.interpolate(
            torch.from_numpy(seen)[None, None].double(), size=label.shape, mode="nearest-exact"
        )[0, 0].numpy()
        expected = count_pixels(full.astype(np.int64), label, 5, 3)
        assert np.array_equal(counts[index], expected)
