"""Data sets by name or by folder: opened, prepared, and the one that commands take when none is named."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import paths, registry
from bench.datasets.folder import FolderDataset, holds_dataset
from bench.errors import DatasetError, SettingError, StorageError, UnknownNameError
from bench.files import write_atomic
from bench.records import DatasetCard

__all__ = ["FolderDataset", "default_dataset", "open_dataset", "prepare", "use"]

log = logging.getLogger(__name__)

_FIRST_DEFAULT = "shapes"
_VOC_FOLDER = re.compile(r"VOCSegmentation|VOC20(0[7-9]|1[0-2])")
"""Names of folders whose label maps are PASCAL VOC's, though no classes.txt says so."""


def open_dataset(spec: str, *, root: Path | None = None, allow_download: bool = False) -> FolderDataset:
    """Open a data set by its registered name or by its folder.

    spec: a registered name, or a path (with a separator in it, or of an existing folder; a registered name wins, so
        a folder of that name is written ./NAME).
    root: where a registered data set lies; by default the folder that `prepare` was last given, or NAME below the
        data folder (`DENSEBENCH_DATA`). One that is generated is prepared on the spot; one that is downloaded only
        with `allow_download`.
    Raises UnknownNameError for a name that is neither, DatasetError for a data set that is absent or broken.
    """
    if spec in registry.names("datasets"):
        card: DatasetCard = registry.card("datasets", spec)
        return FolderDataset(_folder_of(card, root, allow_download), card=card)
    folder = Path(spec).expanduser()
    if not (_is_path(spec) or folder.exists()):
        raise _unknown(spec)
    dataset = FolderDataset(folder)
    if _VOC_FOLDER.fullmatch(dataset.root.resolve().name) and not (dataset.root / "classes.txt").exists():
        log.info("%s is read as PASCAL VOC: its 21 classes, background 0", dataset.root)
        return FolderDataset(folder, card=registry.card("datasets", "voc"))
    return dataset


def prepare(
    name: str, root: Path | None = None, say: Callable[[str], None] = log.info, *, masks: str | None = None
) -> Path:
    """Make or fetch a registered data set and return its folder; does nothing when it is complete.

    root: where it shall lie, or lies already; remembered for `open_dataset`. By default NAME below the data folder.
    say: is told each step, one line at a time. masks: a set of masks of the card to fetch, too.
    Raises UnknownNameError, SettingError for a mask set that cannot be fetched, and what the data set's own `prepare`
    raises (DownloadError, StorageError, DatasetError).
    """
    if name not in registry.names("datasets"):
        raise _unknown(name)
    card: DatasetCard = registry.card("datasets", name)
    if masks is not None and masks not in card.masks:
        raise SettingError(_no_such_masks(card, masks))
    place = _root_of(name) if root is None else root.expanduser()
    folder: Path = registry.load(card.prepare)(place, say)
    if masks is not None:
        registry.load(card.prepare_masks)(place, folder, masks, say)
    if root is not None:
        state = _read_state()
        _write_state({**state, "roots": {**state.get("roots", {}), name: str(root.expanduser().resolve())}})
    return folder


def _no_such_masks(card: DatasetCard, masks: str) -> str:
    if not card.masks:
        return f"{card.name} has no masks to fetch; run `bench data prepare {card.name}` without --masks {masks}"
    return (
        f"{card.name} has no mask set {masks!r} to fetch.{registry.near(masks, card.masks)} There are: "
        f"{', '.join(card.masks)}; masks of your own go into saliency_NAME/ beside its pictures' folder"
    )


def default_dataset() -> str:
    """The data set that commands take when none is named: what `use` was last given, at first "shapes"."""
    return str(_read_state().get("default", _FIRST_DEFAULT))


def use(name: str) -> None:
    """Make a registered name or a folder the default data set; a folder is remembered by its absolute path.

    Raises UnknownNameError for what is neither, DatasetError for a folder that holds no data set.
    """
    if name not in registry.names("datasets"):
        folder = Path(name).expanduser()
        if not (_is_path(name) or folder.exists()):
            raise _unknown(name)
        FolderDataset(folder)
        name = str(folder.resolve())
    _write_state({**_read_state(), "default": name})


def _folder_of(card: DatasetCard, root: Path | None, allow_download: bool) -> Path:
    place = _root_of(card.name) if root is None else root.expanduser()
    if not card.download or allow_download:
        folder: Path = registry.load(card.prepare)(place, log.info)
        return folder
    if not holds_dataset(place):
        raise DatasetError(
            f"the data set {card.name!r} is not in {place}: run `bench data prepare {card.name}` to fetch it, or "
            f"`bench data prepare {card.name} --root DIR` where DIR holds it already"
        )
    return place


def _is_path(spec: str) -> bool:
    return "/" in spec or "\\" in spec or spec.startswith("~")


def _unknown(name: str) -> UnknownNameError:
    known = registry.names("datasets")
    return UnknownNameError(
        f"there is no data set called {name!r}.{registry.near(name, known)} Known: {', '.join(known)}; a folder of "
        f"pictures or in VOC layout may be given as well (./{name}, if that is one)"
    )


def _root_of(name: str) -> Path:
    remembered = _read_state().get("roots", {}).get(name)
    return Path(remembered) if remembered else paths.data_root() / name


def _state_path() -> Path:
    return paths.data_root() / "default.json"


def _read_state() -> dict[str, Any]:
    path = _state_path()
    try:
        state = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}): delete it and run `bench data use NAME` again") from error
    if not isinstance(state, dict) or not isinstance(state.get("roots", {}), dict):
        raise StorageError(f"{path} is not what `bench data use` writes: delete it and run `bench data use NAME` again")
    return state


def _write_state(state: dict[str, Any]) -> None:
    write_atomic(
        _state_path(), (json.dumps(state, indent=2) + "\n").encode(), fix="set DENSEBENCH_DATA to a folder of yours"
    )
