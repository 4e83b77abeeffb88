"""Pictures and label maps as arrays: reading, resizing, padding, and where the cells of a feature map lie.

Everything here is a pure function of its arguments and files; Pillow decodes, numpy computes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.errors import DatasetError
from bench.files import write_atomic

__all__ = [
    "Interpolation",
    "cell_index",
    "mask_of",
    "pad_picture",
    "picture_size",
    "read_grey",
    "read_label",
    "read_painted_label",
    "read_picture",
    "resize_picture",
    "voc_palette",
    "write_label",
]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF tag Orientation."""

_SWAPS_SIDES = {5, 6, 7, 8}

_SCALED_GREY = {"L;2": 85, "L;4": 17}
"""Pillow stretches grey PNGs of 2 and 4 bits to 0..255; this is the factor, by raw mode."""

_LOSSY = {"JPEG", "MPO", "JPEG2000"}
"""Formats that Pillow reads as grey and that change values; a PNG's name proves nothing."""

_DARK, _HALF, _WHITE = 64, 127, 192
"""Greys of masks: what is black, above what lies the foreground, and what is white."""

_NEARLY_GREY = 8
"""By so much the channels of a grey picture may differ once it was a JPEG."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The picture as people see it: uint8 RGB (H, W, 3).

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8 bits (divided by 257).
    Raises DatasetError naming a file that is absent, truncated or not a picture.
    """
    with _opened(path, "picture") as image:
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image, path)
        if turn is not None:
            rgb = rgb.transpose(turn)
        return np.array(rgb, dtype=np.uint8)


def picture_size(path: Path) -> tuple[int, int]:
    """(H, W) of what `read_picture` gives, from the file's header (TIFF files are decoded).

    Raises DatasetError naming a file that is absent or not a picture.
    """
    with _opened(path, "picture") as image:
        swapped = _orientation(image) in _SWAPS_SIDES
        width, height = image.size
    return (width, height) if swapped else (height, width)


def read_label(path: Path) -> NDArray[np.uint8]:
    """The class numbers of a label map: uint8 (H, W), the indices of a palette PNG or the values of a grey one.

    Raises DatasetError as `read_painted_label` does.
    """
    return read_painted_label(path)[0]


def read_painted_label(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """A label map as `read_label` gives it, and the colours of its palette, uint8 (n, 3), None where it is grey.

    Raises DatasetError for colour pictures, for values above 255, for maps that were stored with loss or are shown
    turned (EXIF), and for files that are absent or damaged.
    """
    with _opened(path, "label map") as image:
        if image.mode not in ("P", "L", "1", "I") and not image.mode.startswith("I;16"):
            raise DatasetError(
                f"{path} holds colours, not class numbers (mode {image.mode}); expected a palette or grey PNG whose "
                "values are the classes, 255 = void: convert it"
            )
        _check_stored_upright(image, path, "label map")
        if image.format in _LOSSY:
            raise DatasetError(
                f"{path} is a {image.format} file, which changes the values near edges; expected a PNG whose values "
                "are the classes, 255 = void: write it again from the source"
            )
        divisor = _SCALED_GREY.get(_raw_mode(image), 1) if image.mode == "L" else 1
        values = np.asarray(image)
        colours = np.frombuffer(bytes(image.getpalette() or ()), np.uint8).reshape(-1, 3) if image.mode == "P" else None
    if values.dtype.itemsize > 1 and values.size:
        low, high = int(values.min()), int(values.max())
        if not 0 <= low <= high <= 255:
            raise DatasetError(
                f"{path} holds the value {high if high > 255 else low}; class numbers are 0 to 253 and 255 = void: "
                "renumber them"
            )
    numbers: NDArray[np.uint8] = values.astype(np.uint8) // np.uint8(divisor)
    return numbers, colours


def read_grey(path: Path) -> NDArray[np.uint8]:
    """A map of one value a pixel, such as a saliency mask, as a viewer shows it: uint8 (H, W), 255 = white.

    Alpha where it varies; else the colours, a palette's indices through their colours: the grey, or, of a map of black
    and one colour, 0 and 255. 16-bit grey by its largest value: up to 255 the values as they are; two values, 0 and
    another, as 0 and 255; else divided by 257.
    Raises DatasetError for other colours, for what nobody can see (alpha 0 everywhere over a drawing, a palette of one
    colour), for colours of 16 bits and for maps that are shown turned (EXIF), and as `read_picture` does.
    """
    with _opened(path, "mask") as image:
        _check_stored_upright(image, path, "mask")
        if _is_deep(image):
            return _deep_mask(image, path)
        if image.mode == "L" and "transparency" not in image.info:
            return np.array(image)
        if image.mode == "F" or _raw_mode(image).endswith(";16B"):
            raise _no_mask(path, "has colours of 16 bits or fractions")
        if not _has_alpha(image):
            return _grey_of(image, np.asarray(image.convert("RGB")), path)
        colours = np.array(image.convert("RGBA"))
    alpha = np.ascontiguousarray(colours[..., 3])
    if alpha.min() != alpha.max():
        return alpha
    if alpha.any():
        return _grey_of(image, colours[..., :3], path)
    if (colours != colours[:1, :1]).any():
        raise _no_mask(path, "holds a drawing that is transparent everywhere")
    return alpha


def mask_of(grey: NDArray[np.uint8], path: Path) -> NDArray[np.bool_]:
    """The foreground, bool (H, W), of what `read_grey` gave for the file `path`.

    Greys from black (below 64) to above 127 are probabilities: foreground is above 127. All white (192 and above) is
    all foreground, 0 and 1 alone are the mask itself. Everything else is no mask: dark greys only, which class numbers
    are, and 0 to 63 with 255 and nothing in between, which is class numbers with void. Raises DatasetError then.
    """
    seen = np.flatnonzero(np.bincount(grey.reshape(-1), minlength=256))
    low, high = int(seen[0]), int(seen[-1])
    if high <= 1:
        return grey > 0
    numbers = high == 255 and bool(((seen > 0) & (seen < _DARK)).any()) and not ((seen >= _DARK) & (seen < 255)).any()
    if low >= _WHITE or (low < _DARK and high > _HALF and not numbers):
        return grey > _HALF
    shown = ", ".join(map(str, seen[:4])) + (f", … {high}" if len(seen) > 4 else "")
    raise _no_mask(path, f"holds the greys {shown}")


def resize_picture(
    picture: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> NDArray[np.uint8]:
    """A uint8 picture (H, W, 3) at another size (H', W'), anti-aliased when it shrinks, as Pillow defines it.

    A picture that has the size already is returned as it is.
    """
    height, width = size
    if picture.shape[:2] == (height, width):
        return picture
    return np.array(Image.fromarray(picture).resize((width, height), _FILTERS[interpolation]), dtype=np.uint8)


def pad_picture(picture: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Repeat the last row and column until both sides are multiples of `multiple` (pixels).

    A picture (H, W, 3) that fits already is returned as it is.
    """
    bottom, right = (-side % multiple for side in picture.shape[:2])
    if not bottom and not right:
        return picture
    return np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode="edge")


def cell_index(pixels: int, extent: float, cells: int, stride: float, offset: float = 0.0) -> NDArray[np.intp]:
    """The feature cell that holds the centre of each output pixel along one axis: intp (pixels,), 0 … cells-1.

    This is nearest-neighbour upsampling by pixel centres. Output pixel y of an axis that was resized from `pixels` to
    `extent` input pixels (before padding) has its centre at (y + 1/2) · extent / pixels in input coordinates, which
    lies in cell floor((centre - offset) / stride); centres outside the map take the nearest cell. Where the factor
    is an integer, every cell is repeated exactly that often.

    stride, offset: as in `Tap`, in input pixels.
    """
    centres = (2 * np.arange(pixels, dtype=np.float64) + 1) * extent / (2 * pixels)
    index = np.floor((centres - offset) / stride).astype(np.intp)
    return np.clip(index, 0, cells - 1)


def voc_palette() -> NDArray[np.uint8]:
    """The colours of PASCAL VOC's label maps: uint8 (256, 3).

    Bit 3j of a class number is bit 7-j of its red, bit 3j+1 of its green, bit 3j+2 of its blue (VOC devkit).
    """
    classes = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for j in range(8):
        for channel in range(3):
            bit = (classes >> (3 * j + channel)) & 1
            palette[:, channel] |= (bit << (7 - j)).astype(np.uint8)
    return palette


def write_label(path: Path, ids: NDArray[np.integer[Any]], palette: NDArray[np.uint8] | None = None) -> None:
    """Write class numbers (H, W), 0 … 255, as a palette PNG; the file is whole or absent.

    palette: uint8 (256, 3); VOC's when not given.
    Raises ValueError for ids outside 0 … 255 and StorageError when the file cannot be written.
    """
    if ids.ndim != 2 or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= 255):
        raise ValueError(f"a label map is (H, W) with values 0 to 255, got shape {ids.shape}")
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette((voc_palette() if palette is None else palette).tobytes())

    def save(file: BinaryIO) -> None:
        image.save(file, format="PNG")

    write_atomic(path, save)


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """A picture opened with Pillow; everything a damaged file does becomes one DatasetError."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DatasetError(f"{what} {path} does not exist: restore it or take its name off the list") from error
    except PermissionError as error:
        raise DatasetError(f"{what} {path} may not be read: change its permissions") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"{what} {path} cannot be read ({reason}); the file is truncated or damaged: restore it or take its name "
            "off the list"
        ) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation (1 … 8) that is still to be undone."""
    if image.format == "TIFF":
        image.load()  # Pillow turns TIFF files itself, while decoding
    # PNG's own getexif decodes the pixels in search of a late EXIF chunk; the header must do, here and in read_picture
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _check_stored_upright(image: Image.Image, path: Path, what: str) -> None:
    if _orientation(image) in _TURNS:
        raise DatasetError(
            f"the {what} {path} is stored turned (EXIF orientation {_orientation(image)}): save its pixels as they are "
            "shown, without that tag"
        )


def _has_alpha(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def _no_mask(path: Path, seen: str) -> DatasetError:
    return DatasetError(
        f"{path} {seen}, so nobody can tell its foreground; expected a mask, white (255) on black (0), greys between "
        "them, 0 and 1 alone, or alpha: write 0 and 255"
    )


def _grey_of(image: Image.Image, colours: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Colours (H, W, 3) as grey (H, W); those of black and one colour more as 0 and 255."""
    brightest: NDArray[np.uint8] = colours.max(2)
    if image.mode == "P" and (colours == colours[:1, :1]).all() and len(np.unique(np.asarray(image))) > 1:
        raise _no_mask(path, "has a palette that gives all its numbers one colour")
    if int((brightest - colours.min(2)).max()) <= _NEARLY_GREY:
        return brightest
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    bright = packed[packed > 0]
    if (bright != bright[0]).any():
        raise _no_mask(path, "holds colours")
    return _black_and_white(packed > 0)


def _black_and_white(white: NDArray[np.bool_]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = white.astype(np.uint8) * np.uint8(255)
    return grey


def _deep_mask(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.int64)
    high = int(values.max())
    if int(values.min()) >= 0 and high <= 255:
        return values.astype(np.uint8)
    if ((values == 0) | (values == high)).all():
        return _black_and_white(values > 0)
    if high < (_HALF + 1) * 257:
        raise _no_mask(path, f"holds 16-bit values up to {high}")
    return _deep_grey(image, path)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(_deep_grey(image, path)).convert("RGB")
    if image.mode == "F":
        raise DatasetError(f"picture {path} has floating-point values of unknown range: save it with 8 bits a channel")
    if _has_alpha(image):
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _deep_grey(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """16-bit grey at 8 bits (H, W): 65535 = 255 · 257."""
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise DatasetError(f"{path} has grey values outside 0 to 65535: save it with 8 or 16 bits")
    return ((values + 128) // 257).astype(np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, as Pillow names it; known only before they are decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
