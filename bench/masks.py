"""Masks of salient objects for the pictures of a data set, by an estimator: `bench masks`.

pictures → what the estimator reads (threads, ahead) → maps (batches) → masks → files (threads, behind)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import paths, registry
from bench.contracts import Estimator
from bench.datasets import FolderDataset, default_dataset, open_dataset
from bench.datasets.folder import MASK_PREFIX
from bench.datasets.maskrecord import FORMAT, RECORD, read_record
from bench.errors import SettingError
from bench.files import lock, make_folder, write_atomic, write_new
from bench.prefetch import prefetch
from bench.progress import progress
from bench.records import Checkpoint, EstimatorCard, EstimatorRequest
from bench.runs import differences
from bench.saliency import CutSettings, cut, stretch_to_size
from bench.settings import apply, parse_overrides, setting

__all__ = ["MaskRequest", "make_masks"]

log = logging.getLogger(__name__)

_FIX = "name another folder with --output"
_BATCH = {"cpu": 4, "cuda": 32}
_MOST_WORKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRequest:
    """One `bench masks`, as typed. batch_size: 0 = by the device. workers: -1 = one a core, at most 8."""

    estimator: str
    dataset: str | None = None
    split: str | None = None
    checkpoint: str | None = None
    output: Path | None = None
    overrides: Sequence[str] = ()
    limit: int | None = None
    batch_size: int = 0
    workers: int = -1
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class _FileSettings:
    """What a user may say of a checkpoint."""

    key: str | None = setting(None, "the entry of the file that holds the weights")
    prefix: str | None = setting(None, "of the wanted keys")
    seed: int = setting(0, "of `random`", minimum=0, maximum=2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What was asked for, settled. spec: how the data set was named."""

    card: EstimatorCard
    options: Any
    checkpoint: Checkpoint
    cutting: CutSettings
    spec: str
    dataset: FolderDataset
    names: tuple[str, ...]
    folder: _MaskFolder
    device: str


def make_masks(request: MaskRequest) -> Path:
    """Write a mask for every picture that has none yet; returns the folder: NAME.png (0 and 255) and masks.json.

    A picture with too little foreground gets no file; masks.json names it, so that it is not looked at again.
    Raises InputErrors for what cannot be as asked, before any work, and DatasetError for a picture that cannot be read;
    the masks made until then are kept.
    """
    plan = _settle(request)
    folder, total = plan.folder, len(plan.names)
    there = folder.done(plan.names)
    todo = [name for name in plan.names if name not in there]
    log.info(
        "%s: %d pictures of %s into %s, %d done before; above %g of the map, less what is below %g of the picture "
        "(%s); %s",
        plan.card.name, total, plan.dataset.name, folder.path, total - len(todo), plan.cutting.threshold,
        plan.cutting.smallest, plan.cutting.cleaning, plan.device,
    )  # fmt: skip
    if todo:
        _make(plan, todo, request)
    _conclude(plan)
    return folder.path


def _make(plan: _Plan, todo: Sequence[str], request: MaskRequest) -> None:
    wanted = EstimatorRequest(card=plan.card, checkpoint=plan.checkpoint, options=plan.options, device=plan.device)
    estimator: Estimator = registry.load(plan.card.factory)(wanted)
    size = request.batch_size or _BATCH[plan.device.partition(":")[0]]
    workers = request.workers if request.workers >= 0 else min(os.cpu_count() or 1, _MOST_WORKERS)
    without = []
    with plan.folder.claimed():
        try:
            with progress(len(plan.names), "masks", done=len(plan.names) - len(todo)) as tick:
                for name, written in _stream(plan, estimator, todo, size, workers):
                    if not written:
                        without.append(name)
                    tick(1)
        finally:
            plan.folder.add_without(without)


def _stream(
    plan: _Plan, estimator: Estimator, names: Sequence[str], size: int, workers: int
) -> Iterator[tuple[str, bool]]:
    """(name, whether a mask was written) of every picture, in order."""

    def read(batch: Sequence[str]) -> list[tuple[str, tuple[int, int], Any]]:
        pictures = [plan.dataset.picture(name) for name in batch]
        return [
            (name, (picture.shape[0], picture.shape[1]), estimator.prepare(picture))
            for name, picture in zip(batch, pictures, strict=True)
        ]

    def maps() -> Iterator[tuple[str, tuple[int, int], NDArray[np.uint8]]]:
        for _, pictures in prefetch(_batches(names, size), read, workers):
            found = estimator.saliency([prepared for _, _, prepared in pictures])
            for (name, extent, _), saliency in zip(pictures, found, strict=True):
                yield name, extent, saliency

    def write(item: tuple[str, tuple[int, int], NDArray[np.uint8]]) -> bool:
        name, extent, saliency = item
        mask = cut(stretch_to_size(saliency, extent), plan.cutting)
        if mask is not None:
            plan.folder.write(name, mask)
        return mask is not None

    for (name, _, _), written in prefetch(maps(), write, workers):
        yield name, written


def _batches(names: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(names)
    while batch := list(islice(left, size)):
        yield batch


def _conclude(plan: _Plan) -> None:
    folder = plan.folder
    without = sum(name in folder.without for name in plan.names)
    if without:
        log.info(
            "%d of %d pictures have no mask: their foreground is below %g of the picture (named in %s)",
            without, len(plan.names), plan.cutting.smallest, folder.record_path,
        )  # fmt: skip
    inside = folder.path.resolve().parent == plan.dataset.root.resolve() and folder.path.name.startswith(MASK_PREFIX)
    if without < len(plan.names):
        mask_set = folder.path.name.removeprefix(MASK_PREFIX) if inside else str(folder.path)
        mask_set = mask_set if inside or os.sep in mask_set else f".{os.sep}{mask_set}"
        words = ["bench", "train", "maskcontrast", "--dataset", plan.spec, "--masks", mask_set]
        log.info("learn from them: %s", shlex.join(words))


# --- what is asked for ---------------------------------------------------------------------------------------


def _settle(request: MaskRequest) -> _Plan:
    name, _, checkpoint_name = request.estimator.partition("@")
    card: EstimatorCard = registry.card("estimators", name)
    if checkpoint_name and request.checkpoint:
        raise SettingError(
            f"--checkpoint {request.checkpoint} is for nothing: {request.estimator} has its own; drop one of the two"
        )
    given = _overrides(card, request.overrides)
    options = apply(card.options(), given[card.name], card.name)
    cutting = apply(CutSettings(), given["masks"], "masks")
    checkpoint = _checkpoint(card, checkpoint_name or request.checkpoint, given["checkpoint"])
    spec = request.dataset or default_dataset()
    dataset = open_dataset(spec)
    path = request.output or dataset.root / f"{MASK_PREFIX}{card.name}"
    record = {
        "estimator": {"name": card.name, "version": card.version, "options": asdict(options)},
        "checkpoint": checkpoint.identity | {key: text for key, text in given["checkpoint"].items() if key != "seed"},
        "masks": asdict(cutting),
        # two data sets may have pictures of the same names
        "dataset": "" if path.resolve().is_relative_to(dataset.root.resolve()) else dataset.name,
    }
    return _Plan(
        card=card,
        options=options,
        checkpoint=checkpoint,
        cutting=cutting,
        spec=spec,
        dataset=dataset,
        names=_names(dataset, request.split)[: request.limit],
        folder=_MaskFolder.open(path, record),
        device=_device(card, request.device),
    )


def _overrides(card: EstimatorCard, texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """The `--set` of the command by owner; those without one are about the masks."""
    given: dict[str, dict[str, str]] = {card.name: {}, "masks": {}, "checkpoint": {}}
    for override in parse_overrides(texts):
        owner = override.owner or "masks"
        if owner not in given:
            raise SettingError(
                f"--set {override}: {owner!r} is no part of this command.{registry.near(owner, given)} Owners here: "
                f"{', '.join(given)}"
            )
        given[owner][override.key] = override.value
    return given


def _checkpoint(card: EstimatorCard, name: str | None, given: Mapping[str, str]) -> Checkpoint:
    about = apply(_FileSettings(), given, "checkpoint")
    if not card.trainable:
        return Checkpoint(name="none", kind="none")
    from bench import weights

    found = weights.resolve(
        card, name, weights_dir=paths.weights_dir(), seed=about.seed, entry=about.key, prefix=about.prefix
    )
    unread = ({"key", "prefix"} if found.path is None else {"seed"}) & given.keys()
    if unread:
        raise SettingError(f"checkpoint.{min(unread)} is not read: the weights of {card.name} are {found.kind} here")
    return found


def _device(card: EstimatorCard, wanted: str) -> str:
    if not card.trainable:
        return "cpu"
    from bench.processes import usable_device

    return usable_device(wanted)


def _names(dataset: FolderDataset, split: str | None) -> tuple[str, ...]:
    """The pictures of a split, or of all splits, each once, in the order of their lists."""
    splits = dataset.splits() if split is None else (split,)
    return tuple(dict.fromkeys(name for each in splits for name in dataset.names(each)))


# --- the folder of masks -------------------------------------------------------------------------------------

_SUFFIX = ".png"


@dataclass(slots=True)
class _MaskFolder:
    """A folder of masks that were all made in one way, which masks.json tells; one command at a time writes to it.

    settings: that way, plain data. without: names of pictures that have no mask since they hold too little foreground.
    """

    path: Path
    settings: Mapping[str, Any]
    without: frozenset[str]

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> _MaskFolder:
        """The folder at a path, existing or not; nothing is written yet.

        Raises SettingError when it holds masks that were made otherwise, and StorageError for a damaged record.
        """
        folder = cls(path, json.loads(json.dumps(settings)), frozenset())
        folder._compare()
        return folder

    @property
    def record_path(self) -> Path:
        return self.path / RECORD

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder for this command alone, with its record written before any mask.

        What was seen when the folder was opened is looked at again: a network was loaded in between, and another
        command may have begun. Raises SettingError where one is at work there or has made masks in another way, and
        StorageError where the folder cannot be written.
        """
        make_folder(self.path, fix=_FIX)
        with _locked(self.path):
            record = self._compare()
            if record is None:
                self._write_first()
            elif record["settings"] != self.settings:
                self._write()
            yield

    def _compare(self) -> dict[str, Any] | None:
        """The record that is there; the names of pictures without a mask are taken from it."""
        record = read_record(self.record_path)
        begun = self.path.is_dir() and any(self.path.glob(f"*{_SUFFIX}"))
        if record is None:
            if begun:
                raise SettingError(f"{self.path} holds masks that `bench masks` did not make: {_FIX}")
        elif record["settings"] == self.settings:
            self.without = frozenset(record["without"])
        elif record["without"] or begun:
            changed = "; ".join(differences(record["settings"], self.settings))
            raise SettingError(
                f"{self.path} holds masks that were made otherwise ({changed}): ask for the same, delete that folder, "
                f"or {_FIX}"
            )
        return record

    def _write_first(self) -> None:
        """Where folders cannot be locked, this tells two commands apart that begin in the same moment."""
        try:
            write_new(self.record_path, self._record(), fix=_FIX)
        except FileExistsError:
            raise SettingError(_BUSY.format(self.path)) from None

    def _write(self) -> None:
        write_atomic(self.record_path, self._record(), fix=_FIX)

    def _record(self) -> bytes:
        record = {"format": FORMAT, "settings": self.settings, "without": sorted(self.without)}
        return (json.dumps(record, indent=1) + "\n").encode()

    def done(self, names: Iterable[str]) -> set[str]:
        """Those of the pictures that are not to be looked at again."""
        files = {entry.name for entry in os.scandir(self.path)} if self.path.is_dir() else set()
        return {name for name in names if name in self.without or f"{name}{_SUFFIX}" in files}

    def write(self, name: str, mask: NDArray[np.bool_]) -> None:
        """A grey PNG of 0 and 255; the file is whole or absent."""
        image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))

        def save(file: BinaryIO) -> None:
            image.save(file, format="PNG")

        write_atomic(self.path / f"{name}{_SUFFIX}", save, fix=_FIX)

    def add_without(self, names: Iterable[str]) -> None:
        """Note pictures that get no mask."""
        more = self.without | set(names)
        if more != self.without:
            self.without = more
            self._write()


_BUSY = "another `bench masks` is writing to {}: wait for its end, or " + _FIX


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock on a folder, where it can be locked; SettingError where another process holds it."""
    if os.name == "nt":  # folders cannot be opened there
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor):
            raise SettingError(_BUSY.format(folder))
        yield
    finally:
        os.close(descriptor)
