"""The embedded data set: ten classes of textured shapes on cluttered ground, drawn in seconds and never downloaded.

Each class is a shape with a texture (`FORMS`). Two tones of random hue per object, half of its area each, keep colour
from telling the class; outlines are stretched, sheared and dented a little, so that the outline alone does not quite
tell it either. (K-means of the true objects of val, mIoU with background: random vectors 17 %, mean colour 18 %, Hu
moments of the outline 36 to 44 %.)

A picture is a pure function of (seed, split, index), computed in float64 and written without compression, so that the
files, and with them the data set's fingerprint, are the same on every machine.
"""

from __future__ import annotations

import json
import secrets
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import StorageError
from bench.files import write_atomic
from bench.images import voc_palette
from bench.progress import track
from bench.records import IGNORE, DatasetCard

__all__ = ["CARD", "COUNTS", "FORMS", "SEED", "SIZE", "VERSION", "Sample", "generate", "prepare"]

VERSION = 1
"""Raised whenever a pixel changes."""

SIZE = 112
SEED = 0
COUNTS = {"train": 1000, "val": 400}

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]
Shape = Callable[[Floats, Floats], Bits]
Texture = Callable[[Floats, Floats, float], Floats]

_SPLITS = {"train": 0, "val": 1}
_MARKER = ".shapes.json"
_FOLDERS = ("JPEGImages", "SegmentationClass", "saliency_clean", "saliency_noisy")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture: uint8 RGB (S, S, 3); label uint8 (S, S); true and noisy mask of the objects, bool (S, S)."""

    picture: NDArray[np.uint8]
    label: NDArray[np.uint8]
    clean: Bits
    noisy: Bits


# Shapes: object coordinates u (right) and v (down), the object's radius is 1.


def _disc(u: Floats, v: Floats) -> Bits:
    return u**2 + v**2 < 0.81


def _square(u: Floats, v: Floats) -> Bits:
    return np.maximum(np.abs(u), np.abs(v)) < 0.75


def _triangle(u: Floats, v: Floats) -> Bits:
    inside: Bits = (v < 0.6) & (1.8 * np.abs(u) < v + 0.95)
    return inside


def _flower(u: Floats, v: Floats) -> Bits:
    inside: Bits = np.hypot(u, v) < 0.72 + 0.26 * np.cos(5 * np.arctan2(u, -v))
    return inside


def _cross(u: Floats, v: Floats) -> Bits:
    short, long = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (short < 0.34) & (long < 0.95)


def _annulus(u: Floats, v: Floats) -> Bits:
    radius = np.hypot(u, v)
    return (radius > 0.42) & (radius < 0.98)


def _heart(u: Floats, v: Floats) -> Bits:
    x, y = 1.4 * u, -1.4 * v + 0.1
    inside: Bits = (x**2 + y**2 - 0.9) ** 3 < 1.6 * x**2 * y**3
    return inside


def _crescent(u: Floats, v: Floats) -> Bits:
    return (u**2 + v**2 < 0.92) & ((u - 0.5) ** 2 + v**2 > 0.46)


def _hexagon(u: Floats, v: Floats) -> Bits:
    return np.maximum(np.abs(v), 0.5 * np.abs(v) + 0.866 * np.abs(u)) < 0.8


def _ellipse(u: Floats, v: Floats) -> Bits:
    return u**2 + (v / 0.58) ** 2 < 0.96


# Textures: object coordinates and a period -> share of the light tone, 0 … 1; half the area is light.


def _wave(phase: Floats) -> Floats:
    return (phase % 1.0 < 0.5).astype(np.float64)


def _rings(u: Floats, v: Floats, period: float) -> Floats:
    return _wave(np.hypot(u, v) / period)


def _checks(u: Floats, v: Floats, period: float) -> Floats:
    light: Floats = (np.floor(2 * u / period) + np.floor(2 * v / period)) % 2
    return light


def _stripes(u: Floats, v: Floats, period: float) -> Floats:
    return _wave(v / period)


def _dots(u: Floats, v: Floats, period: float) -> Floats:
    x, y = u / period % 1.0 - 0.5, v / period % 1.0 - 0.5
    light: Bits = x**2 + y**2 < 0.5 / np.pi
    return light.astype(np.float64)


def _grid(u: Floats, v: Floats, period: float) -> Floats:
    width = 1 - 0.5**0.5  # lines of this share of a period cover half of the plane
    light: Bits = (u / period % 1.0 < width) | (v / period % 1.0 < width)
    return light.astype(np.float64)


def _spokes(u: Floats, v: Floats, period: float) -> Floats:
    return _wave(np.arctan2(v, u) / (2 * np.pi) * np.rint(3 / period))


def _zigzag(u: Floats, v: Floats, period: float) -> Floats:
    return _wave(v / period + np.abs(u / period % 1.0 - 0.5))


def _shade(u: Floats, v: Floats, period: float) -> Floats:
    light: Floats = np.clip(0.5 + 0.62 * v, 0.0, 1.0)
    return light


def _bricks(u: Floats, v: Floats, period: float) -> Floats:
    row = np.floor(v / period * 1.5)
    mortar: Bits = (v / period * 1.5 % 1.0 < 0.34) | ((0.8 * u / period + 0.5 * row) % 1.0 < 0.24)
    return (~mortar).astype(np.float64)


def _speckle(u: Floats, v: Floats, period: float) -> Floats:
    x, y = np.floor(5 * u / period), np.floor(5 * v / period)
    noise = np.sin(12.9898 * x + 78.233 * y) * 43758.5453  # a hash of the cell, without a table
    return _wave(noise)


FORMS: dict[str, tuple[Shape, Texture]] = {
    "disc": (_disc, _rings),
    "square": (_square, _checks),
    "triangle": (_triangle, _stripes),
    "flower": (_flower, _dots),
    "cross": (_cross, _grid),
    "annulus": (_annulus, _spokes),
    "heart": (_heart, _zigzag),
    "crescent": (_crescent, _shade),
    "hexagon": (_hexagon, _bricks),
    "ellipse": (_ellipse, _speckle),
}
"""The outline and texture of each class."""

_DRAWINGS = tuple(FORMS.values())

CARD = DatasetCard(
    name="shapes",
    summary="generated pictures of textured shapes: 10 classes and background, 112x112, train 1,000 / val 400",
    prepare="bench.datasets.shapes:prepare",
    classes=("background", *FORMS),
    background=0,
    default_preset="native",
    version=VERSION,
    download=False,
    licence="Apache-2.0",
    source="generated by bench.datasets.shapes",
)


def generate(index: int, split: str, seed: int = SEED, size: int = SIZE) -> Sample:
    """Draw picture `index` of a split ("train" or "val"); depends on its arguments alone.

    size: side in pixels (S). The label is 0 on the ground, 1 … 10 in the order of `FORMS`, 255 on the ring of one
    pixel around each object.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, _SPLITS[split], index]))
    canvas = _ground(rng, size)
    label = np.zeros((size, size), np.uint8)
    for x, y, radius in _places(rng, size):
        kind = int(rng.integers(len(_DRAWINGS)))
        _draw(rng, canvas, label, kind, (x, y, radius))
    clean = label > 0
    label[_dilate(clean) & ~clean] = IGNORE
    canvas += 0.02 * rng.standard_normal(canvas.shape)
    picture = np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    return Sample(picture, label, clean, _spoil(rng, clean))


def prepare(root: Path, say: Callable[[str], None]) -> Path:
    """Draw the data set into the folder `root` unless it is there, whole and of this version; returns `root`.

    Everything is drawn beside `root`, which gets its name last; a folder that lacks files or is of another version is
    drawn again. Raises StorageError when `root` holds other files, or cannot be written.
    """
    if _is_whole(root):
        return root
    if root.exists() and not _is_ours(root):
        raise StorageError(f"{root} holds other files: give an empty or new folder, for example {root / 'shapes'}")
    say(f"drawing the data set shapes into {root} ({sum(COUNTS.values()):,} pictures, a few seconds)")
    temporary = root.with_name(f".{root.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_all(temporary)
        _put(temporary, root)
    except OSError as error:
        raise StorageError(
            f"{root} cannot be written ({error.strerror or error}): set DENSEBENCH_DATA to a folder with 150 MB left"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _places(rng: np.random.Generator, size: int) -> list[tuple[float, float, float]]:
    """Centre and radius (pixels) of one object, or in a fifth of the pictures of two that do not touch."""
    if rng.random() >= 0.2:
        radius = rng.uniform(0.24, 0.36) * size
        x, y = rng.uniform(radius, size - radius, 2)
        return [(x, y, radius)]
    radii = rng.uniform(0.19, 0.22, 2) * size
    while True:
        (x1, x2), (y1, y2) = (rng.uniform(radii, size - radii) for _ in range(2))
        if np.hypot(x1 - x2, y1 - y2) > 1.3 * radii.sum():
            return [(x1, y1, radii[0]), (x2, y2, radii[1])]


def _draw(
    rng: np.random.Generator, canvas: Floats, label: NDArray[np.uint8], kind: int, place: tuple[float, float, float]
) -> None:
    """Draw one object into picture and label, in the window that can hold it."""
    x, y, radius = place
    reach = 1.5 * radius
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    window = (slice(top, int(y + reach) + 2), slice(left, int(x + reach) + 2))
    rows, columns = label[window].shape
    right: Floats = (left + 0.5 + np.arange(columns, dtype=np.float64) - x) / radius
    down: Floats = (top + 0.5 + np.arange(rows, dtype=np.float64)[:, None] - y) / radius
    u, v = _object_axes(rng, right, down)
    shape, texture = _DRAWINGS[kind]
    inside = shape(*_dented(rng, u, v))
    phase = rng.uniform(-0.1, 0.1, 2)
    light = texture(u + phase[0], v + phase[1], rng.uniform(0.34, 0.42))
    dark_tone, light_tone = _tones(rng)
    colours = dark_tone + (light_tone - dark_tone) * light[..., None]
    canvas[window][inside] = colours[inside]
    label[window][inside] = kind + 1


def _object_axes(rng: np.random.Generator, right: Floats, down: Floats) -> tuple[Floats, Floats]:
    """Object coordinates of picture offsets: turned by SD 0.15 rad, stretched and sheared by up to a tenth."""
    angle = 0.15 * rng.standard_normal()
    stretch, shear = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
    u = (np.cos(angle) * right + np.sin(angle) * down) * stretch
    v = (np.cos(angle) * down - np.sin(angle) * right) / stretch
    return u + shear * v, v


def _dented(rng: np.random.Generator, u: Floats, v: Floats) -> tuple[Floats, Floats]:
    """Coordinates in which an outline has low waves of up to 4 % each around its centre."""
    angle = np.arctan2(v, u)
    scale = np.ones_like(u)
    for waves in (2, 3, 4):
        scale += rng.uniform(0, 0.04) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return u * scale, v * scale


def _tones(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A dark and a light colour of independent hue, RGB in 0 … 1, on average more than .25 apart."""
    while True:
        dark = _colour(rng.random(), rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.4))
        light = _colour(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.75, 1.0))
        if np.abs(light - dark).mean() > 0.25:
            return dark, light


def _colour(hue: float, saturation: float, value: float) -> Floats:
    """RGB (3,) of hue, saturation and value, all 0 … 1 (the hexcone model)."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def _any_colour(rng: np.random.Generator) -> Floats:
    return _colour(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.9))


def _ground(rng: np.random.Generator, size: int) -> Floats:
    """Background (S, S, 3): a ramp between two colours, two octaves of noise, up to six blobs or lines."""
    down, right = np.mgrid[:size, :size] / size
    angle = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.5 * (np.cos(angle) * (right - 0.5) + np.sin(angle) * (down - 0.5))
    ramp += 0.25 * _noise(rng, 6, size) + 0.15 * _noise(rng, 14, size)
    first, second = _any_colour(rng), _any_colour(rng)
    canvas: Floats = first + (second - first) * np.clip(ramp, 0, 1)[..., None]
    for _ in range(rng.integers(7)):
        x, y = rng.random(2)
        angle = rng.uniform(0, np.pi)
        along = np.cos(angle) * (right - x) + np.sin(angle) * (down - y)
        across = np.cos(angle) * (down - y) - np.sin(angle) * (right - x)
        length, width = rng.uniform(0.05, 0.12, 2) if rng.random() < 0.5 else (rng.uniform(0.2, 0.8), 0.012)
        canvas[(along / length) ** 2 + (across / width) ** 2 < 1] = _any_colour(rng)
    return canvas


def _noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """Value noise (S, S): normal values on a grid, linear between its points."""
    position = np.linspace(0, cells - 1, size)
    weights = np.clip(1 - np.abs(position[:, None] - np.arange(cells)), 0, 1)
    noise: Floats = weights @ rng.standard_normal((cells, cells)) @ weights.T
    return noise


def _spoil(rng: np.random.Generator, clean: Bits) -> Bits:
    """A mask as a poor estimator gives it: grown or shrunk, shifted, sometimes with a hole or a false blob.

    Mean IoU with the true mask: .74 (as in the trials that this data set is made after).
    """
    size = clean.shape[0]
    noisy = clean
    change, steps = (_dilate if rng.random() < 0.5 else _erode), int(rng.integers(0, 3))
    for _ in range(steps):
        noisy = change(noisy)
    noisy = _shift(noisy, int(rng.integers(-4, 5)), int(rng.integers(-4, 5)))
    if rng.random() < 0.2:
        rows, columns = np.nonzero(clean)
        centre = int(rng.integers(rows.size))
        noisy = noisy & ~_blob(rng, size, float(columns[centre]), float(rows[centre]))
    if rng.random() < 0.2:
        noisy = noisy | _blob(rng, size, *(rng.random(2) * size))
    return noisy


def _blob(rng: np.random.Generator, size: int, x: float, y: float) -> Bits:
    down, right = np.mgrid[:size, :size]
    width, height = rng.uniform(0.06, 0.14, 2) * size
    blob: Bits = ((right - x) / width) ** 2 + ((down - y) / height) ** 2 < 1
    return blob


def _shift(mask: Bits, down: int, right: int) -> Bits:
    """The mask moved; what comes in is False."""
    rows, columns = mask.shape
    moved = np.zeros_like(mask)
    moved[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)] = mask[
        max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)
    ]
    return moved


def _dilate(mask: Bits) -> Bits:
    """Grown by the eight neighbours."""
    tall = mask | _shift(mask, 1, 0) | _shift(mask, -1, 0)
    return tall | _shift(tall, 0, 1) | _shift(tall, 0, -1)


def _erode(mask: Bits) -> Bits:
    return ~_dilate(~mask)


def _name(split: str, index: int) -> str:
    return f"{split}_{index:04d}"


def _write_all(folder: Path) -> None:
    """The whole data set, its marker last."""
    for inner in _FOLDERS:
        (folder / inner).mkdir(parents=True)
    todo = [(split, index) for split, count in COUNTS.items() for index in range(count)]
    for split, index in track(todo, len(todo), "drawing shapes"):
        sample, name = generate(index, split), _name(split, index)
        masks = (mask.astype(np.uint8) * np.uint8(255) for mask in (sample.clean, sample.noisy))
        images = (sample.picture, sample.label, *masks)
        for inner, image in zip(_FOLDERS, images, strict=True):
            palette = voc_palette() if inner == "SegmentationClass" else None
            (folder / inner / f"{name}.png").write_bytes(_png(image, palette))
    for split, count in COUNTS.items():
        names = "".join(f"{_name(split, index)}\n" for index in range(count))
        write_atomic(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names.encode())
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in CARD.classes).encode())
    write_atomic(folder / _MARKER, (json.dumps(_marker()) + "\n").encode())


def _put(temporary: Path, root: Path) -> None:
    """Give the new folder its name, in place of an incomplete one; another process may have been faster."""
    old = root.with_name(f".{root.name}.{secrets.token_hex(8)}.old")
    if root.exists() and not _is_whole(root):
        root.rename(old)
    try:
        temporary.rename(root)
    except OSError:
        if not _is_whole(root):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _marker() -> dict[str, int]:
    return {"version": VERSION, "seed": SEED, "size": SIZE, **COUNTS}


def _is_whole(root: Path) -> bool:
    """True for a folder of this version with as many files as it should have."""
    try:
        if json.loads((root / _MARKER).read_text("utf-8")) != _marker():
            return False
    except (OSError, ValueError):
        return False
    lists = (root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in COUNTS)
    if not all(path.is_file() for path in (root / "classes.txt", *lists)):
        return False
    return all(sum(1 for _ in (root / inner).glob("*.png")) == sum(COUNTS.values()) for inner in _FOLDERS)


def _is_ours(root: Path) -> bool:
    """True for a folder, perhaps incomplete, that holds nothing but what `prepare` writes."""
    if not root.is_dir():
        return False
    known = {*_FOLDERS, "ImageSets", "classes.txt", _MARKER}
    names = {path.stem.rpartition("_")[0] for inner in _FOLDERS for path in (root / inner).glob("*")}
    return {path.name for path in root.iterdir()} <= known and names <= set(COUNTS)


def _png(image: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """A PNG of RGB (H, W, 3), grey or palette indices (H, W), without compression.

    What a compressor writes depends on the library and its version; stored blocks are the same bytes everywhere.
    """
    rows, columns = image.shape[:2]
    kind = 2 if image.ndim == 3 else 0 if palette is None else 3
    flat = image.reshape(rows, -1)
    data = np.concatenate([np.zeros((rows, 1), np.uint8), flat], axis=1).tobytes()  # filter 0 before each row
    blocks = [data[start : start + 65535] for start in range(0, len(data), 65535)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, kind, 0, 0, 0)),
            _chunk(b"PLTE", palette.tobytes()) if palette is not None else b"",
            _chunk(b"IDAT", b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(data))),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
