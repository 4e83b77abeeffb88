"""From what was asked to what will be done: every name, preset and setting is settled here, before any work."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bench import paths, registry
from bench.contracts import Dataset, Scope, Variant
from bench.errors import DatasetError, DownloadError, MismatchError, SettingError, UnknownNameError
from bench.records import Checkpoint, EstimatorCard, MethodCard, Preset, ProtocolCard
from bench.settings import InputSettings, Override, apply, parse_overrides, parse_size, pick_preset

__all__ = [
    "Job",
    "Overlap",
    "Plan",
    "ProtocolChoice",
    "Request",
    "find_overlap",
    "make_plan",
    "parse_method",
    "parse_owner",
]

log = logging.getLogger(__name__)

_FILE_METHOD = re.compile(r"^(?P<file>.+\.py):(?P<factory>[A-Za-z_]\w*)(?:@(?P<checkpoint>.+))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One `bench eval`, as typed."""

    methods: tuple[str, ...]
    protocols: tuple[str, ...]
    dataset: str
    split: str | None = None
    checkpoint: str | None = None
    preset: str | None = None
    clusters: tuple[int, ...] = ()
    seeds: int | None = None
    seed: int = 0
    size: str | None = None
    batch_size: int = 0
    workers: int = -1
    device: str = "auto"
    precision: str = "fp32"
    limit: int | None = None
    overrides: tuple[str, ...] = ()
    again: bool = False
    allow_overlap: bool = False
    save_predictions: bool = False
    results: Path = field(default_factory=paths.results_root)
    cache: Path = field(default_factory=paths.cache_root)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolChoice:
    """A protocol with its preset and the settings that follow from preset and overrides."""

    card: ProtocolCard
    preset: Preset
    settings: Any
    explicit: frozenset[str]

    def variants(self, scope: Scope) -> list[Variant]:
        """The rows to make, their settings final."""
        if not self.card.expand:
            return [Variant(settings=self.settings)]
        found: list[Variant] = registry.load(self.card.expand)(self.settings, replace(scope, explicit=self.explicit))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method: its card, options and weights, and the protocols that will read its maps.

    read_as: key and prefix that the user gave for the checkpoint's file: they decide which of its weights are read.
    """

    spec: str
    card: MethodCard
    argument: str
    options: Any
    checkpoint: Checkpoint
    read_as: Mapping[str, str]
    protocols: tuple[ProtocolChoice, ...]

    @property
    def name(self) -> str:
        """The method's name as it stands in rows: `swav`, `timm:resnet18`."""
        return f"{self.card.name}:{self.argument}" if self.argument else self.card.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Scored pictures that are in the train split too.

    scored: how many pictures are scored. names: of those that both lists name. twins: (name, name in train) of those
    whose files are equal under two names.
    """

    split: str
    train: str
    scored: int
    names: tuple[str, ...]
    twins: tuple[tuple[str, str], ...]

    @property
    def refusal(self) -> str:
        """What is wrong with names in both lists."""
        return (
            f"{self.train!r} lists {len(self.names)} of the {self.scored} pictures of {self.split!r} too, the first is "
            f"{self.names[0]!r}: what is learnt there is scored here; take them off one of the two lists"
        )

    @property
    def twinned(self) -> str:
        """How many files are equal under two names."""
        name, other = self.twins[0]
        return (
            f"{self.train!r} holds {len(self.twins)} of the {self.scored} pictures of {self.split!r} under other "
            f"names, byte for byte, the first is {name!r} = {other!r}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a figure must not be read without where the train split is read."""
        listed = f"{self.train!r} lists {len(self.names)} of the {self.scored} scored pictures too (--allow-overlap)"
        return (*((listed,) if self.names else ()), *((self.twinned,) if self.twins else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that was asked, checked.

    limit: None where it cuts nothing off the split. overlap: None where no protocol reads the train split.
    """

    request: Request
    dataset: Dataset
    split: str
    names: tuple[str, ...]
    limit: int | None
    jobs: tuple[Job, ...]
    overlap: Overlap | None = None

    def overlap_of(self, settings: InputSettings) -> Overlap | None:
        """The overlap with the train split where these settings read that."""
        return self.overlap if settings.reads_of_train != "nothing" else None


@dataclass(frozen=True, slots=True)
class _Method:
    spec: str
    card: MethodCard
    argument: str
    checkpoint: str | None


def parse_method(spec: str) -> _Method:
    """`NAME[:ARGUMENT][@CHECKPOINT]` or `path/to/file.py:factory[@CHECKPOINT]`.

    Raises UnknownNameError for a name nobody registered, SettingError for a missing or unwanted argument.
    """
    if match := _FILE_METHOD.match(spec):
        from bench.usercode import card_of_file

        card = card_of_file(Path(match["file"]), match["factory"])
        return _Method(spec, card, "", match["checkpoint"])
    name, _, checkpoint = spec.partition("@")
    name, _, argument = name.partition(":")
    if name.endswith(".py"):
        raise SettingError(f"--method {spec}: which function of the file builds the method? Write {name}:FUNCTION")
    card = registry.card("methods", name)
    if card.argument and not argument:
        raise SettingError(f"{name!r} needs a name after a colon: --method {name}:{card.argument}")
    if argument and not card.argument:
        raise SettingError(f"the method {name!r} takes nothing after a colon, got {spec!r}; checkpoints follow an @")
    return _Method(spec, card, argument, checkpoint or None)


def parse_owner(spec: str) -> tuple[MethodCard | EstimatorCard, str | None, str]:
    """Whose weights are meant: the card, the checkpoint and the argument of a method or of `ESTIMATOR[@CHECKPOINT]`.

    Raises UnknownNameError for a name that is neither, SettingError for one that is both.
    """
    name, _, checkpoint = spec.partition("@")
    methods, estimators = registry.names("methods"), registry.names("estimators")
    if name in methods and name in estimators:
        raise SettingError(
            f"{name!r} is a method and an estimator: `bench eval --method {spec}` and `bench masks --estimator {spec}` "
            "fetch the weights that they need"
        )
    if name in estimators:
        return registry.card("estimators", name), checkpoint or None, ""
    if not re.search(r":|\.py$", name) and name not in methods:
        known = sorted((*methods, *estimators))
        raise UnknownNameError(
            f"there is no method or estimator called {name!r}.{registry.near(name, known)} Known: {', '.join(known)}"
        )
    method = parse_method(spec)
    return method.card, method.checkpoint, method.argument


def make_plan(request: Request, *, fetch: bool = True, dataset: Dataset | None = None) -> Plan:
    """Settle names, presets, settings, data set and weights; fetches released weights unless told not to.

    dataset: one that is open already; by default the one that the request names is opened.
    """
    from bench.datasets import open_dataset
    from bench.foregrounds import check_masks

    methods = [parse_method(spec) for spec in dict.fromkeys(request.methods)]
    overrides = parse_overrides(request.overrides)
    protocol_cards = [_protocol(spec) for spec in dict.fromkeys(request.protocols)]
    _check_owners(overrides, methods, [card for card, _ in protocol_cards])
    _check_shared(overrides, [card for card, _ in protocol_cards])
    if request.size is not None:
        parse_size(request.size)
    if dataset is None:
        opened = open_dataset(request.dataset)
        opened.check_classes()
        dataset = opened
    split = request.split or dataset.eval_split
    if request.split is None and split != "val":
        log.info("%s: its split %s is scored; choose another with --split", dataset.name, split)
    listed = dataset.names(split)
    names = listed[: request.limit]
    protocols = tuple(
        _choose(card, preset or request.preset, request, overrides, dataset.default_preset)
        for card, preset in protocol_cards
    )
    if request.clusters and not any(choice.card.name == "overclustering" for choice in protocols):
        raise SettingError(
            "--clusters belongs to --protocol overclustering; K of kmeans is set by --set kmeans.clusters=K"
        )
    overlap = _overlap(request, dataset, split, protocols)
    settled = _with_checkpoints(methods, request.checkpoint)
    jobs = tuple(_job(method, request, overrides, protocols, fetch) for method in settled)
    for choice in protocols:
        reads = names if choice.settings.reads_of_train == "nothing" else (*names, *_train_names(dataset, request))
        check_masks(dataset, reads, getattr(choice.settings, "foreground", "none"))
    _check_checkpoint_overrides_are_read(overrides, jobs)
    for job in jobs:
        _check_fit(job, dataset)
    limit = request.limit if len(names) < len(listed) else None
    return Plan(request=request, dataset=dataset, split=split, names=names, limit=limit, jobs=jobs, overlap=overlap)


def find_overlap(dataset: Dataset, split: str, limit: int | None = None) -> Overlap:
    """Look for the pictures of a split, by name and by content, in the data set's train split.

    limit: only the first so many of each. Raises DatasetError for a list that cannot be read.
    """
    names, train = dataset.names(split)[:limit], dataset.names(dataset.train_split)[:limit]
    both = set(names) & set(train)
    return Overlap(
        split=split,
        train=dataset.train_split,
        scored=len(names),
        names=tuple(name for name in names if name in both),
        twins=dataset.twins([name for name in names if name not in both], train),
    )


def _overlap(request: Request, dataset: Dataset, split: str, protocols: Sequence[ProtocolChoice]) -> Overlap | None:
    """What the scored split shares with the train split, where one of the protocols reads that.

    Raises MismatchError where that is the scored split, DatasetError for names in both, unless `--allow-overlap`.
    """
    readers = ", ".join(choice.card.name for choice in protocols if choice.settings.reads_of_train != "nothing")
    if not readers or dataset.train_split not in dataset.splits():  # without one, they are refused where they read it
        return None
    if split == dataset.train_split and not request.allow_overlap:
        raise MismatchError(
            f"{readers} learns from the split {split}, which is the one to be scored: choose another with --split, or "
            "mean it with --allow-overlap"
        )
    found = find_overlap(dataset, split, request.limit)
    if found.names and not request.allow_overlap:
        raise DatasetError(f"{found.refusal}, or mean it with --allow-overlap ({readers} reads {found.train!r})")
    for note in found.notes:
        log.info("%s: %s", dataset.name, note)
    return found


def _train_names(dataset: Dataset, request: Request) -> tuple[str, ...]:
    return dataset.names(dataset.train_split)[: request.limit]


def _protocol(spec: str) -> tuple[ProtocolCard, str | None]:
    name, _, preset = spec.partition(":")
    return registry.card("protocols", name), preset or None


def _check_owners(overrides: Sequence[Override], methods: Sequence[_Method], protocols: Sequence[ProtocolCard]) -> None:
    known = {card.name for card in protocols} | {method.card.name for method in methods} | {"checkpoint"}
    for override in overrides:
        if override.owner and override.owner not in known:
            raise SettingError(
                f"--set {override}: {override.owner!r} is no part of this command."
                f"{registry.near(override.owner, known)} Owners here: {', '.join(sorted(known))}"
            )


def _check_shared(overrides: Sequence[Override], protocols: Sequence[ProtocolCard]) -> None:
    """A key without an owner is for every protocol; SettingError names those that do not have it."""
    known = {field.name for card in protocols for field in fields(card.settings)}
    for override in overrides:
        if not override.owner and override.key not in known and len(protocols) > 1:
            names = ", ".join(card.name for card in protocols)
            near = registry.near(override.key, known)
            raise SettingError(
                f"--set {override}: none of {names} has a setting {override.key!r}.{near} Settings: "
                f"{', '.join(sorted(known))}"
            )
        having = [card.name for card in protocols if override.key in {field.name for field in fields(card.settings)}]
        if not override.owner and 0 < len(having) < len(protocols):
            lacking = ", ".join(card.name for card in protocols if card.name not in having)
            owned = " ".join(f"--set {name}.{override}" for name in having)
            raise SettingError(
                f"--set {override} is for every protocol named, and {lacking} has no {override.key!r}: {owned}"
            )


def _choose(
    card: ProtocolCard, preset_name: str | None, request: Request, overrides: Sequence[Override], default: str
) -> ProtocolChoice:
    preset = pick_preset(card, preset_name, default)
    settings = apply(card.settings(), preset.values(), card.name)
    given: dict[str, Any] = {o.key: o.value for o in overrides if o.owner in ("", card.name)}
    if request.size is not None:
        given["size"] = request.size
    if request.clusters and card.name == "overclustering":
        given["clusters"] = request.clusters
    settings = apply(settings, given, card.name)
    parse_size(settings.size)
    return ProtocolChoice(card=card, preset=preset, settings=settings, explicit=frozenset(given))


def _with_checkpoints(methods: Sequence[_Method], bare: str | None) -> list[_Method]:
    """A bare `--checkpoint` goes with one method, or with several when it is `random`."""
    if bare is None:
        return list(methods)
    open_ones = [method for method in methods if method.card.trainable and method.checkpoint is None]
    if not open_ones and (settled := [method.spec for method in methods if method.checkpoint]):
        raise SettingError(f"--checkpoint {bare} is for nothing: {', '.join(settled)} has its own; drop one of the two")
    if bare != "random" and len(open_ones) > 1:
        raise SettingError(
            f"--checkpoint {bare} cannot be shared by {len(open_ones)} methods: write it behind its method, "
            f"--method {open_ones[0].spec}@{bare} (only `random` goes with several)"
        )
    return [replace(method, checkpoint=bare) if method in open_ones else method for method in methods]


def _job(
    method: _Method, request: Request, overrides: Sequence[Override], protocols: tuple[ProtocolChoice, ...], fetch: bool
) -> Job:
    options = apply(
        method.card.options(), {o.key: o.value for o in overrides if o.owner == method.card.name}, method.card.name
    )
    if method.card.file and method.checkpoint:
        raise SettingError(
            f"--method {method.spec}: a method from a file loads its own weights; drop @{method.checkpoint}"
        )
    about = _checkpoint_overrides(overrides)
    checkpoint = _checkpoint(method, about, fetch)
    if method.card.file:
        checkpoint = replace(checkpoint, sha256=method.card.file_sha256)
    return Job(
        spec=method.spec,
        card=method.card,
        argument=method.argument,
        options=options,
        checkpoint=checkpoint,
        read_as={key: about[key] for key in ("key", "prefix") if key in about and checkpoint.path is not None},
        protocols=protocols,
    )


def _checkpoint(method: _Method, about: Mapping[str, str], fetch: bool) -> Checkpoint:
    from bench import weights

    try:
        return weights.resolve(
            method.card,
            method.checkpoint,
            weights_dir=paths.weights_dir(),
            fetch=fetch,
            seed=int(about.get("seed", 0)),
            entry=about.get("key"),
            prefix=about.get("prefix"),
            argument=method.argument,
        )
    except DownloadError:
        if fetch:
            raise
        return Checkpoint(name=method.checkpoint or method.card.checkpoints[0].name, kind="released")


def _checkpoint_overrides(overrides: Sequence[Override]) -> Mapping[str, str]:
    about = {o.key: o.value for o in overrides if o.owner == "checkpoint"}
    for key in about:
        if key not in ("key", "prefix", "seed"):
            raise SettingError(
                f"checkpoint has no setting {key!r}.{registry.near(key, ('key', 'prefix', 'seed'))} Settings of "
                "checkpoint: key (the entry of the file that holds the weights), prefix (of the wanted keys), seed (of "
                "`random`)"
            )
    if not about.get("seed", "0").isdigit() or int(about.get("seed", "0")) >= 2**63:
        raise SettingError(f"checkpoint.seed={about['seed']} does not fit: expected a whole number from 0 to 2^63 - 1")
    return about


def _check_checkpoint_overrides_are_read(overrides: Sequence[Override], jobs: Sequence[Job]) -> None:
    for key in _checkpoint_overrides(overrides):
        if key == "seed" and not any(job.checkpoint.kind == "random" for job in jobs):
            raise SettingError("checkpoint.seed is the seed of a random initialisation; no method here is @random")
        if key != "seed" and not any(job.checkpoint.path for job in jobs):
            raise SettingError(f"checkpoint.{key} says where weights lie in a file; no method here reads one")


def _check_fit(job: Job, dataset: Dataset) -> None:
    """What can be told apart before the network is built; the maps' kinds are checked when it is."""
    if not dataset.classes:
        raise MismatchError(
            f"the data set {dataset.name} has no label masks, which {', '.join(p.card.name for p in job.protocols)} "
            "needs: add SegmentationClass/ and ImageSets/Segmentation/val.txt"
        )
