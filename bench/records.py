"""The small frozen records that travel between the parts. Plain data: importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "AdapterRequest",
    "Checkpoint",
    "CheckpointCard",
    "Choice",
    "DatasetCard",
    "EstimatorCard",
    "EstimatorRequest",
    "KeyRule",
    "MethodCard",
    "NoOptions",
    "Preset",
    "ProducerCard",
    "ProtocolCard",
    "Source",
    "Tap",
]

IGNORE = 255
"""The label of pixels that are not scored (VOC's void)."""


class Source(str, Enum):
    """Where a value of a preset comes from."""

    SEED = "seed"  # the supplement of arXiv 2102.06191
    PAPER = "paper"  # a published paper (named in the note)
    CODE = "code"  # the authors' released code
    AUTHOR = "author"  # an author's answer in public
    OURS = "ours"  # a choice of this project where the sources are silent


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a preset, with its source and, where it helps, why."""

    value: Any
    source: Source
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named, versioned set of choices. `version` rises whenever a value changes."""

    name: str
    version: int
    summary: str
    choices: Mapping[str, Choice]

    def values(self) -> dict[str, Any]:
        """The bare values, without their sources."""
        return {key: choice.value for key, choice in self.choices.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRule:
    """How the wanted weights lie in a checkpoint file (`bench.weights` applies it, strictly).

    entry: the sub-dictionary that holds the weights ("" = the file is the state dict itself).
    prefix: what every wanted key starts with, removed before loading; keys without it are not part of the network.
    drop: shell patterns, after the prefix is removed, of keys that are known and not wanted ("fc.*"). ("*",) drops
        what lies beside the network, and refuses what would belong inside it.
    optional: shell patterns of network keys that the file may lack ("*.num_batches_tracked").
    probe: (key as in the file, shape) that tells this layout from others; a dimension of -1 is any.
    """

    entry: str = ""
    prefix: str = ""
    drop: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("*num_batches_tracked",)
    probe: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCard:
    """A released file of weights.

    url: where it is fetched; an address that Google Drive or Dropbox shares will do, but no shared folder.
    member: its name inside the archive (tar or zip) that `url` is; "" = `url` is the file itself.
    sha256, md5: the digest or its known beginning, lower-case hex; "" = not published.
    layouts: the key rules under which the file may be read, most likely first.
    bytes: the exact size of the file, to which a download is held; 0 = not known, `verified` may tell a rounded one.
    legacy_pickle: the file holds whole pickled modules, which `weights_only` refuses; it is read with every unknown
        class replaced by an inert stub, and only after its hash was checked or the user vouched for it.
    manual: what to do by hand when the file cannot be fetched by URL.
    verified: what of all this was checked, and how.
    """

    name: str
    filename: str
    url: str = ""
    member: str = ""
    manual: str = ""
    sha256: str = ""
    md5: str = ""
    bytes: int = 0
    layouts: tuple[KeyRule, ...] = ()
    legacy_pickle: bool = False
    licence: str = ""
    training_data: str = ""
    verified: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCard:
    """The facts of a method. Importing the module that holds it must not import torch.

    factory: "module:function", called with one `AdapterRequest`, returns an `Adapter` (see `bench.contracts`).
    version: raised when the maps change for the same weights (it is part of cache and row keys).
    checkpoints: released files, the default first. A method with weights also takes `random` and a file.
    trainable: False for methods without weights (`oracle`, `noise`, `colour`); they ignore the checkpoint.
    options: a frozen dataclass, set by `--set METHOD.key=value`.
    argument: what follows a colon in the method's name, for families such as `timm:NAME`.
    taps: the maps it can give, as far as known without building it; `default_tap` is what protocols read where it is of
        a kind they score, else the first of the kind they score best. probe_tap: what those read that learn a
        classifier of the map, where that is another one. feature_tap: what those read that score features alone, where
        `default_tap` is of the network's own clusters.
    file, file_sha256: for a method that lives in a user's file (`--method file.py:factory`), that file.
    """

    name: str
    summary: str
    factory: str
    version: int = 1
    paper: str = ""
    backbone: str = ""
    checkpoints: tuple[CheckpointCard, ...] = ()
    trainable: bool = True
    options: type = NoOptions
    argument: str = ""
    taps: tuple[str, ...] = ()
    default_tap: str = ""
    probe_tap: str = ""
    feature_tap: str = ""
    notes: str = ""
    file: Path | None = None
    file_sha256: str = ""

    def tap_for(self, protocol: ProtocolCard) -> str:
        """The map that a protocol reads where that is not the default one, else ""."""
        if protocol.probes and self.probe_tap:
            return self.probe_tap
        return "" if "cluster_prob" in protocol.kinds else self.feature_tap

    def version_of(self, tap: str) -> int | str:
        """The version of one of its maps: the default ones have the method's.

        The others have a second one: their cells in the padding took part once. Those of the default maps are as wide
        as the multiple to which pictures are padded.
        """
        return self.version if tap == self.default_tap else f"{self.version}.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights that were chosen for a method.

    kind: `released` (a file of the card), `file` (the user's), `random` (seeded initialisation), `pretrained` (fetched
        by the library that holds the body), `none` (a method without weights).
    sha256: hex digest of the file, "" where there is none. rules: the key rules to try, in order; empty = detect.
    """

    name: str
    kind: Literal["released", "file", "random", "pretrained", "none"]
    path: Path | None = None
    sha256: str = ""
    seed: int = 0
    rules: tuple[KeyRule, ...] = ()
    legacy_pickle: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two checkpoints the same weights: part of the keys of rows."""
        if self.kind == "random":
            return {"name": self.name, "seed": self.seed}
        return {"name": self.name, "sha256": self.sha256} if self.sha256 else {"name": self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRequest:
    """What a method's factory is called with.

    argument: the part of the name after the colon. options: an instance of the card's `options`.
    classes: number of classes of the data set that will be read (for `oracle`).
    """

    card: MethodCard
    checkpoint: Checkpoint
    argument: str = ""
    options: Any = field(default_factory=NoOptions)
    classes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorCard:
    """The facts of a saliency estimator. Importing the module that holds it must not import torch.

    factory: "module:function", called with one `EstimatorRequest`, returns an `Estimator` (see `bench.contracts`).
    version: raised when the maps change for the same weights and options: masks of two versions do not mix.
    checkpoints: released files, the default first. An estimator with weights also takes `random` and a file.
    trainable: False for estimators without weights; they ignore the checkpoint and compute on the CPU.
    options: a frozen dataclass, set by `--set ESTIMATOR.key=value`.
    notes: what a user has to know: what is not released, what differs from the original.
    """

    name: str
    summary: str
    factory: str
    version: int = 1
    paper: str = ""
    checkpoints: tuple[CheckpointCard, ...] = ()
    trainable: bool = True
    options: type = NoOptions
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorRequest:
    """What an estimator's factory is called with. options: an instance of the card's. device: `cpu`, `cuda:1`."""

    card: EstimatorCard
    checkpoint: Checkpoint
    options: Any
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A named map of a network, and where its cells lie.

    channels: D of the float map (B, D, h, w).
    stride: input pixels from one cell to the next. offset: input coordinate (pixels) of the upper left corner of
        cell (0, 0); cell (i, j) covers [offset + i·stride, offset + (i+1)·stride) and likewise for j.
    kind: `class_logit` maps score the data set's classes, one channel each.
    frame: `input`: the coordinates are those of the network's (resized, padded) picture; `label`: those of the label
        map at its own size (only `oracle` needs it).
    alias_of: the tap of which it is another name; a search for layers looks at that one alone.
    """

    name: str
    channels: int
    stride: float
    offset: float = 0.0
    kind: Literal["feature", "foreground_logit", "cluster_prob", "class_logit"] = "feature"
    frame: Literal["input", "label"] = "input"
    alias_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """The facts of a registered data set.

    prepare: "module:function", called as prepare(root: Path, say: Callable[[str], None]) -> Path of the folder in
        VOC layout; makes or fetches the data, does nothing when it is complete.
    masks: names of the mask sets that can be fetched (`bench data prepare NAME --masks SET`).
    prepare_masks: "module:function", called as prepare_masks(root, folder, name, say): fetches a mask set into
        `folder`, which is what `prepare` returned; does nothing when it is there.
    download: True when `prepare` needs the network (it is then never started without being asked for).
    background: index of the background class, None when there is none.
    """

    name: str
    summary: str
    prepare: str
    classes: tuple[str, ...]
    background: int | None
    default_preset: str
    train_split: str = "train"
    eval_split: str = "val"
    version: int = 1
    masks: tuple[str, ...] = ()
    prepare_masks: str = ""
    download: bool = True
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolCard:
    """The facts of a protocol. Importing the module that holds it must not import torch.

    run: "module:function", called as run(work, settings, seed) -> Outcome (see `bench.contracts`).
    settings: a frozen dataclass; every field has a default. presets: the first is used where the data set names none.
    kinds: the kinds of maps it can score, best first.
    needs_objects: it reads pooled objects alone, so there must be a foreground (the method's own, or mask files).
    seeded: the result depends on the seed; otherwise one is enough. seeds: how many, where nothing is said.
    probes: it learns a classifier of the map, and reads the method's `probe_tap`. layers: it takes several maps
        (`tap=a,b`, `tap=search`) and chooses one.
    headline: the matching rule whose mIoU stands in the table. expand: "module:function", called as
        expand(settings, scope: Scope) -> list[Variant], one per row; called with `scope.vectors` None first, to find
        rows that are already there, so it must import nothing heavy. "" = one row with the settings as they are.
    predict: "module:function", called as predict(work, settings, arrays) -> Painting of the scored split's pictures:
        what a finished row says of pictures it has not seen. arrays: those kept beside the row for one seed, and the
        shared ones. "" = its rows cannot be used on other pictures.
    price: "module:function", called as price(settings, scope) -> sentence for `--dry-run` on what it costs beside the
        maps of the scored split. "" = nothing.
    """

    name: str
    summary: str
    run: str
    settings: type
    presets: tuple[Preset, ...]
    kinds: tuple[str, ...] = ("feature",)
    needs_objects: bool = False
    seeded: bool = True
    seeds: int = 5
    probes: bool = False
    layers: bool = False
    headline: str = ""
    expand: str = ""
    predict: str = ""
    price: str = ""
    version: int = 1
    paper: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerCard:
    """The facts of a producer: something that trains a checkpoint.

    exports: other layouts than the harness's own in which it can write the last checkpoint (`--export`).
    """

    name: str
    summary: str
    run: str
    settings: type
    presets: tuple[Preset, ...]
    exports: tuple[str, ...] = ()
    paper: str = ""
