"""Pictures and label maps: decoding against arrays made by hand, sizes, padding and the cells of a map."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import images
from bench.datasets.folder import read_mask
from bench.errors import DatasetError


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path: Path, array, mode=None, **options):
    image = Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)
    image.save(path, **options)
    return path


def test_rgb_is_read_unchanged(tmp_path, rgb):
    read = images.read_picture(save(tmp_path / "a.png", rgb))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, rgb)


def test_grey_has_three_equal_channels(tmp_path, rgb):
    read = images.read_picture(save(tmp_path / "a.png", rgb[..., 0]))
    np.testing.assert_array_equal(read, np.repeat(rgb[..., :1], 3, axis=2))


def test_bilevel_is_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    read = images.read_picture(save(tmp_path / "a.png", bits))
    np.testing.assert_array_equal(read[..., 1], [[255, 0], [0, 255]])


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 1:3] = 255  # magenta and yellow: red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=95)
    read = images.read_picture(tmp_path / "a.jpg").astype(int)
    assert read.shape == (16, 16, 3)
    assert np.abs(read - [255, 0, 0]).max() <= 6


def test_transparency_lies_over_white(tmp_path, rgb):
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[:2] = 255
    alpha[2] = 128
    read = images.read_picture(save(tmp_path / "a.png", np.concatenate([rgb, alpha], axis=2))).astype(int)
    np.testing.assert_array_equal(read[:2], rgb[:2])
    np.testing.assert_array_equal(read[3:], np.full((2, 7, 3), 255))
    mixed = rgb[2] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(read[2] - mixed).max() <= 1


def test_transparent_palette_and_grey_lie_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.save(tmp_path / "p.png", transparency=1)
    np.testing.assert_array_equal(
        images.read_picture(tmp_path / "p.png"),
        [[[200, 0, 0], [255, 255, 255]], [[255, 255, 255], [200, 0, 0]]],
    )
    save(tmp_path / "la.png", np.array([[[10, 0], [10, 255]]], np.uint8))
    np.testing.assert_array_equal(images.read_picture(tmp_path / "la.png")[0, :, 0], [255, 10])


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.array([[0, 256, 257, 1000], [30000, 65534, 65535, 128]], np.uint16)
    read = images.read_picture(save(tmp_path / "a.png", deep))
    np.testing.assert_array_equal(read[..., 0], np.rint(deep / 257.0))
    wide = images.read_picture(save(tmp_path / "a.tif", deep.astype(np.int32)))
    np.testing.assert_array_equal(wide, read)


def test_float_pictures_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.tif.*floating-point"):
        images.read_picture(save(tmp_path / "a.tif", np.ones((3, 3), np.float32)))


UPRIGHT = {  # what the eight orientations of the EXIF standard mean, as array operations
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_picture_and_size(tmp_path, rgb, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", rgb, exif=exif, **options)
    expected = UPRIGHT[orientation](rgb)
    np.testing.assert_array_equal(images.read_picture(path), expected)
    assert images.picture_size(path) == expected.shape[:2]


def test_exif_orientation_of_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = np.zeros((16, 32, 3), np.uint8)
    halves[:, :16] = 255
    path = save(tmp_path / "a.jpg", halves, exif=exif)
    read = images.read_picture(path)
    assert images.picture_size(path) == read.shape[:2] == (32, 16)
    assert read[:14].min() > 240  # the left half came to the top
    assert read[18:].max() < 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif"])
def test_truncated_pictures_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"broken.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"broken\.{suffix}.*restore it") as caught:
        images.read_picture(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    for read in (images.read_picture, images.picture_size, images.read_label):
        with pytest.raises(DatasetError, match=r"fake\.jpg"):
            read(path)


def test_absent_picture_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.jpg does not exist"):
        images.picture_size(tmp_path / "absent.jpg")


IDS = np.array([[0, 1, 20], [255, 254, 3]], np.uint8)


def test_labels_survive_a_round_trip(tmp_path):
    images.write_label(tmp_path / "a.png", IDS)
    np.testing.assert_array_equal(images.read_label(tmp_path / "a.png"), IDS)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.array(image.convert("RGB"))[0, 1].tolist() == [128, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_grey_and_sixteen_bit_labels_are_read(tmp_path):
    np.testing.assert_array_equal(images.read_label(save(tmp_path / "grey.png", IDS)), IDS)
    np.testing.assert_array_equal(images.read_label(save(tmp_path / "deep.png", IDS.astype(np.uint16))), IDS)
    with pytest.raises(DatasetError, match=r"high\.png holds the value 256"):
        images.read_label(save(tmp_path / "high.png", IDS.astype(np.uint16) + 1))


def png(width, height, bits, kind, data):
    """The bytes of a PNG. kind: its colour type. data: its rows, each after a filter byte."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_are_not_stretched(tmp_path, bits):
    top = 2**bits - 1
    values = [0, 1, top, 0]
    row = sum(value << (bits * (3 - i)) for i, value in enumerate(values)) << ((-4 * bits) % 8)
    data = b"\0" + row.to_bytes((4 * bits + 7) // 8, "big")

    (tmp_path / "a.png").write_bytes(png(4, 1, bits, 0, data))
    assert images.read_label(tmp_path / "a.png").tolist() == [values]


def test_palette_labels_of_few_bits_give_their_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), "P")
    image.putpalette([9, 9, 9] * 4)
    image.save(tmp_path / "a.png", bits=2)
    assert images.read_label(tmp_path / "a.png").tolist() == [[0, 1, 2, 3]]


def test_colour_labels_are_refused(tmp_path, rgb):
    with pytest.raises(DatasetError, match=r"a\.png holds colours, not class numbers.*expected a palette or grey PNG"):
        images.read_label(save(tmp_path / "a.png", rgb))


def test_truncated_label_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    images.write_label(path, np.random.default_rng(0).integers(0, 256, (64, 64)))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DatasetError, match=r"a\.png"):
        images.read_label(path)


def test_write_label_refuses_what_does_not_fit(tmp_path):
    for ids in (np.array([[256]]), np.array([[-1]]), np.zeros(4, int)):
        with pytest.raises(ValueError, match="0 to 255"):
            images.write_label(tmp_path / "a.png", ids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_maps_that_are_shown_turned_are_refused(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", INSIDE * np.uint8(255), exif=exif)
    for read in (read_mask, images.read_label):
        with pytest.raises(DatasetError, match=rf"a\.{suffix} is stored turned \(EXIF orientation {orientation}\)"):
            read(path)
    exif[0x0112] = 1
    save(path, INSIDE * np.uint8(255), exif=exif)
    assert read_mask(path).shape == INSIDE.shape


def test_labels_that_were_stored_with_loss_are_refused(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(DatasetError, match=r"a\.png is a JPEG file, which changes the values near edges"):
        images.read_label(tmp_path / "a.png")


INSIDE = np.zeros((12, 16), np.bool_)
INSIDE[3:8, 2:9] = True
WHITE = INSIDE * np.uint8(255)
PICTURE = np.random.default_rng(3).integers(1, 256, (12, 16, 3), dtype=np.uint8)


def painted(indices, *colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def gradient():
    """Probabilities of many levels, above one half where INSIDE says."""
    rng = np.random.default_rng(4)
    return np.where(INSIDE, rng.integers(128, 256, INSIDE.shape), rng.integers(0, 128, INSIDE.shape)).astype(np.uint8)


AS_SEEN = {
    "grey": lambda: WHITE,
    "0 and 1": lambda: INSIDE * np.uint8(1),
    "one bit": lambda: Image.fromarray(WHITE).convert("1"),
    "probabilities": gradient,
    "colours that are grey": lambda: np.dstack([WHITE] * 3),
    "palette, white first": lambda: painted(~INSIDE, (255, 255, 255), (0, 0, 0)),
    "palette, black first": lambda: painted(INSIDE, (0, 0, 0), (255, 255, 255)),
    "class palette": lambda: painted(INSIDE, (0, 0, 0), (128, 0, 0)),
    "dark class palette": lambda: painted(INSIDE * 8, *images.voc_palette().tolist()),
    "green": lambda: np.dstack([WHITE * 0, WHITE, WHITE * 0]),
    "cut-out": lambda: np.dstack([PICTURE * INSIDE[..., None], WHITE]),
    "picture with alpha": lambda: np.dstack([PICTURE, WHITE]),
    "white with alpha": lambda: np.dstack([np.full_like(PICTURE, 255), WHITE]),
    "grey with alpha": lambda: Image.fromarray(np.dstack([np.full_like(WHITE, 255), WHITE]), "LA"),
    "grey, opaque": lambda: Image.fromarray(np.dstack([WHITE, np.full_like(WHITE, 255)]), "LA"),
    "16 bits, 0 and 1": lambda: INSIDE.astype(np.uint16),
    "16 bits, 0 and 255": lambda: WHITE.astype(np.uint16),
    "16 bits, 0 and 4095": lambda: INSIDE * np.uint16(4095),
    "16 bits, 0 and 65535": lambda: INSIDE * np.uint16(65535),
    "16 bits, probabilities": lambda: gradient().astype(np.uint16) * 257,
}  # fmt: skip


@pytest.mark.parametrize("stored", AS_SEEN)
def test_masks_are_read_as_they_are_seen(tmp_path, stored):
    found = AS_SEEN[stored]()
    path = tmp_path / "a.png"
    (found if isinstance(found, Image.Image) else Image.fromarray(found)).save(path)
    np.testing.assert_array_equal(read_mask(path), INSIDE)


def test_a_mask_after_jpeg_is_read(tmp_path):
    large = np.kron(WHITE, np.ones((8, 8), np.uint8))
    for stored in (large, np.dstack([large] * 3)):
        path = save(tmp_path / "a.jpg", stored, quality=60)
        np.testing.assert_array_equal(read_mask(path), large > 0)


@pytest.mark.parametrize(
    ("grey", "all_of_it"),
    [(0, False), (255, True), (1, True)],
)
def test_masks_of_one_value(tmp_path, grey, all_of_it):
    path = save(tmp_path / "a.png", np.full((4, 5), grey, np.uint8))
    assert (read_mask(path) == all_of_it).all()
    path = save(tmp_path / "b.png", np.zeros((4, 5, 4), np.uint8))  # a cut-out of nothing
    assert not read_mask(path).any()


def numbered(*numbers):
    """Class numbers below INSIDE, 0 elsewhere."""
    return np.where(INSIDE, np.resize(np.array(numbers, np.uint16), INSIDE.shape), np.uint16(0))


NO_MASKS = {
    "class numbers": (lambda: numbered(7, 8).astype(np.uint8), r"holds the greys 0, 7, 8,"),
    "class numbers and void": (lambda: numbered(7, 255).astype(np.uint8), r"greys 0, 7, 255,"),
    "0, 1 and void": (lambda: numbered(1, 255).astype(np.uint8), r"greys 0, 1, 255,"),
    "one class": (lambda: numbered(2).astype(np.uint8), r"greys 0, 2,"),
    "dark greys": (lambda: gradient() // 2, r"greys 0, .* … 127"),
    "light greys": (lambda: gradient() // 4 + 100, r"greys 100, "),
    "class numbers of 16 bits": (lambda: numbered(300, 301), r"holds 16-bit values up to 301"),
    "several colours": (lambda: painted(numbered(1, 2), *images.voc_palette().tolist()), "holds colours"),
    "a picture": (lambda: PICTURE, "holds colours"),
    "one colour for all": (lambda: painted(INSIDE, (9, 9, 9), (9, 9, 9)), "palette that gives all its numbers one"),
    "nothing to be seen": (lambda: np.dstack([WHITE] * 3 + [WHITE * 0]), "transparent everywhere"),
}  # fmt: skip


@pytest.mark.parametrize("stored", NO_MASKS)
def test_what_is_no_mask_is_refused(tmp_path, stored):
    make, pattern = NO_MASKS[stored]
    found = make()
    path = tmp_path / "a.png"
    (found if isinstance(found, Image.Image) else Image.fromarray(found)).save(path)
    with pytest.raises(DatasetError, match=rf"a\.png .*{pattern}.*write 0 and 255") as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_masks_in_colours_of_16_bits_are_refused(tmp_path, kind, channels):
    """Pillow reads their upper bytes alone: 0 and 1 would be black."""
    rows = np.zeros((3, 4, channels), ">u2")
    rows[1, 1:] = 1
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    (tmp_path / "a.png").write_bytes(png(4, 3, 16, kind, data))
    with pytest.raises(DatasetError, match=r"a\.png has colours of 16 bits"):
        read_mask(tmp_path / "a.png")


def test_grey_masks_of_four_bits_are_seen_dark(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, 1, 4, 0, b"\0\x01\x10"))  # 0 1 1 0 of 15
    with pytest.raises(DatasetError, match=r"a\.png holds the greys 0, 17,"):
        read_mask(tmp_path / "a.png")


def test_voc_palette_has_the_published_colours():
    palette = images.voc_palette()
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: tuple(palette[i].tolist()) for i in published} == published
    assert len(np.unique(palette, axis=0)) == 256


def test_resize_keeps_equal_sizes_and_is_anti_aliased(rgb):
    assert images.resize_picture(rgb, (5, 7)) is rgb
    assert images.resize_picture(rgb, (10, 3)).shape == (10, 3, 3)
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    small = images.resize_picture(np.repeat(board[..., None], 3, 2).astype(np.uint8), (16, 16))
    assert small.dtype == np.uint8
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2  # without anti-aliasing: 0 and 255
    nearest = images.resize_picture(rgb, (10, 14), "nearest")
    np.testing.assert_array_equal(nearest, rgb.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(("multiple", "shape"), [(1, (5, 7)), (4, (8, 8)), (5, (5, 10)), (16, (16, 16))])
def test_padding_repeats_the_last_row_and_column(rgb, multiple, shape):
    padded = images.pad_picture(rgb, multiple)
    rows, columns = np.minimum(np.arange(shape[0]), 4), np.minimum(np.arange(shape[1]), 6)
    np.testing.assert_array_equal(padded, rgb[rows][:, columns])
    assert (padded is rgb) == (shape == (5, 7))


@pytest.mark.parametrize(("cells", "factor"), [(1, 1), (4, 16), (7, 8), (64, 32), (1000, 3)])
def test_cells_repeat_exactly_at_integer_factors(cells, factor):
    pixels = cells * factor
    np.testing.assert_array_equal(images.cell_index(pixels, pixels, cells, factor), np.repeat(np.arange(cells), factor))


def test_cells_agree_with_exact_fractions():
    from fractions import Fraction
    from math import floor

    rng = np.random.default_rng(0)
    for _ in range(60):
        pixels, extent, stride = int(rng.integers(1, 600)), int(rng.integers(1, 600)), int(rng.integers(1, 40))
        offset, cells = int(rng.integers(-20, 20)), int(rng.integers(1, 40))
        exact = [
            min(max(floor((Fraction(2 * y + 1, 2) * extent / pixels - offset) / stride), 0), cells - 1)
            for y in range(pixels)
        ]
        index = images.cell_index(pixels, extent, cells, stride, offset)
        assert index.dtype == np.intp
        assert index.tolist() == exact


def test_cells_agree_with_nearest_exact_interpolation():
    torch = pytest.importorskip("torch")
    for pixels, cells in ((375, 32), (500, 63), (64, 7)):
        # one resize from the whole map: the map spans the axis, so stride = extent / cells
        reference = torch.nn.functional.interpolate(
            torch.arange(cells, dtype=torch.float64)[None, None], size=pixels, mode="nearest-exact"
        )[0, 0].numpy()
        index = images.cell_index(pixels, 512, cells, 512 / cells)
        assert np.mean(index == reference) > 0.99  # float ties may fall to either side
