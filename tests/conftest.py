"""Fixtures of the whole suite: no test reads or writes the user's folders, and a small data set on disk."""

from __future__ import annotations

import ast
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from bench import cli

CLASSES = ("background", "left", "right")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Data, cache and results of a test lie in its temporary folder."""
    for name in ("DATA", "CACHE", "RESULTS"):
        monkeypatch.setenv(f"DENSEBENCH_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run a command line in this process; gives (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        logging.getLogger("bench").handlers.clear()
        monkeypatch.setattr("sys.argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    yield run
    logging.getLogger("bench").handlers.clear()


@pytest.fixture
def offline(monkeypatch):
    """No host answers, and nobody waits for one."""

    def refuse(session: requests.Session, method: str, url: str, **options: object) -> None:
        raise requests.ConnectionError(f"no route to {url}")

    monkeypatch.setattr("requests.Session.request", refuse)
    monkeypatch.setattr("bench.download._PAUSE", 0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real pictures beside the checkout; skips where they are absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real pictures in {folder}")
    return folder


GOLDEN = Path(__file__).parent / "golden"


def _drawn(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule of the golden files: every tensor, float64, from a seed that its key gives."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(values)


@pytest.fixture(scope="session")
def golden_keys() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """The shapes of a network of the golden files by key, in the order of its list."""

    def keys(name: str) -> dict[str, tuple[int, ...]]:
        lines = (line.split("\t") for line in (GOLDEN / f"{name}_keys.txt").read_text().splitlines())
        return {key: ast.literal_eval(shape) for key, shape in lines}

    return keys


@pytest.fixture(scope="session")
def golden_state(golden_keys) -> Callable[[str], dict[str, torch.Tensor]]:
    """The state dict, float64, of a network of the golden files: every key of its list, in its order."""
    return lambda name: {key: _drawn(key, shape) for key, shape in golden_keys(name).items()}


@pytest.fixture(scope="session")
def golden_weights() -> Callable[..., dict[str, torch.Tensor]]:
    """The state dict, float64, of any network by the same rule; prefix: of the keys where they are drawn from."""

    def state(network: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
        return {key: _drawn(prefix + key, tuple(value.shape)) for key, value in network.state_dict().items()}

    return state


def make_voc(root: Path, *, val: int = 6, train: int = 4, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """A VOC-layout folder of noisy two-colour blobs on grey, with a ring of 255 and sizes that differ."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}{index}" for index in range(count)]
        for index, name in enumerate(names):
            height, width = size if index % 3 else (size[0] - 5, size[1] + 3)
            label = np.zeros((height, width), np.uint8)
            label[8:40, 4:20] = 1
            label[12:44, 26:44] = 2
            label[8:40, 4] = 255
            picture = np.full((height, width, 3), 128) + rng.integers(-20, 20, (height, width, 3))
            picture[label == 1] += np.array([90, -60, 0])
            picture[label == 2] += np.array([-60, 0, 90])
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            mask = Image.fromarray(label, "P")
            mask.putpalette([value for k in range(256) for value in (k, 255 - k, (7 * k) % 256)])
            mask.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def voc(tmp_path) -> Path:
    """A small VOC-layout folder: 6 val and 4 train pictures, background and two classes."""
    return make_voc(tmp_path / "tiny")


def stored_grey(seen: np.ndarray, path: Path) -> np.ndarray:
    grey = seen[..., 1]
    Image.fromarray(grey).save(path.with_suffix(".png"))
    return np.stack([grey] * 3, axis=2)


def stored_deep(seen: np.ndarray, path: Path) -> np.ndarray:
    grey = seen[..., 1]
    Image.fromarray(grey.astype(np.uint16) * 257).save(path.with_suffix(".png"))
    return np.stack([grey] * 3, axis=2)


def stored_cmyk(seen: np.ndarray, path: Path) -> np.ndarray:
    inks = [*(255 - np.moveaxis(seen, 2, 0)), np.zeros(seen.shape[:2], np.uint8)]
    Image.merge("CMYK", [Image.fromarray(ink) for ink in inks]).save(path.with_suffix(".tif"))
    return seen


def stored_transparent(seen: np.ndarray, path: Path) -> np.ndarray:
    """Viewers show the white below."""
    alpha = np.full((*seen.shape[:2], 1), 255, np.uint8)
    alpha[:8] = 0
    Image.fromarray(np.concatenate((seen, alpha), 2)).save(path.with_suffix(".png"))
    return np.where(alpha, seen, np.uint8(255))


def stored_turned(seen: np.ndarray, path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise before it is shown
    Image.fromarray(np.rot90(seen)).save(path, quality=95, exif=exif)
    return np.rot90(np.array(Image.open(path)), -1)


STORED = {
    "grey": stored_grey, "deep": stored_deep, "cmyk": stored_cmyk, "transparent": stored_transparent,
    "turned": stored_turned,
}  # fmt: skip


@pytest.fixture(params=STORED)
def unusual(request, voc, tmp_path) -> tuple[Path, Path]:
    """`voc` with its pictures stored in an unusual way, and as the plain RGB pictures that a viewer shows of them."""
    plain = Path(shutil.copytree(voc, tmp_path / "plain"))
    for path in sorted((voc / "JPEGImages").iterdir()):
        seen = np.array(Image.open(path))
        path.unlink()
        shown = STORED[request.param](seen, path)
        (plain / "JPEGImages" / path.name).unlink()
        Image.fromarray(shown).save(plain / "JPEGImages" / f"{path.stem}.png")
    return voc, plain
