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
    "pad_picture",
    "picture_size",
    "read_grey",
    "read_label",
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

    Raises DatasetError for colour pictures, for values above 255, and for files that are absent or damaged.
    """
    with _opened(path, "label map") as image:
        if image.mode not in ("P", "L", "1", "I") and not image.mode.startswith("I;16"):
            raise DatasetError(
                f"{path} holds colours, not class numbers (mode {image.mode}); expected a palette or grey PNG whose "
                "values are the classes, 255 = void: convert it"
            )
        divisor = _SCALED_GREY.get(_raw_mode(image), 1) if image.mode == "L" else 1
        values = np.asarray(image)
    if values.dtype.itemsize > 1 and values.size:
        low, high = int(values.min()), int(values.max())
        if not 0 <= low <= high <= 255:
            raise DatasetError(
                f"{path} holds the value {high if high > 255 else low}; class numbers are 0 to 254 and 255 = void: "
                "renumber them"
            )
    numbers: NDArray[np.uint8] = values.astype(np.uint8) // np.uint8(divisor)
    return numbers


def read_grey(path: Path) -> NDArray[np.uint8]:
    """A grey map such as a saliency mask: uint8 (H, W), the first channel where the file has several.

    Palette files give their indices, 16-bit grey is scaled to 8 bits. Raises DatasetError as `read_picture` does.
    """
    with _opened(path, "mask") as image:
        if _is_deep(image):
            return _deep_grey(image, path)
        values = np.array(image).astype(np.uint8)
    return values if values.ndim == 2 else np.ascontiguousarray(values[..., 0])


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


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(_deep_grey(image, path)).convert("RGB")
    if image.mode == "F":
        raise DatasetError(f"picture {path} has floating-point values of unknown range: save it with 8 bits a channel")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
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
