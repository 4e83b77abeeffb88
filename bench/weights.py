"""From the name of a checkpoint to weights in a network, with an account of every key.

`resolve` settles which file is meant and makes sure that it is there and the right one; `load_into` reads it, picks the
network's weights out of it and loads them strictly. Nothing is ever loaded in part: what does not fit is an error.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from bench import download, registry
from bench.checkpoints import read_checkpoint
from bench.errors import CheckpointError, DownloadError, UnknownNameError
from bench.records import Checkpoint, CheckpointCard, EstimatorCard, KeyRule, MethodCard
from bench.registry import near

__all__ = [
    "Account",
    "architecture_of",
    "detect",
    "file_sha256",
    "fits_layout",
    "holds_network",
    "in_layout",
    "load_into",
    "normalised_as",
    "read_checkpoint",
    "resolve",
    "seeded",
    "select",
    "state_sha256",
]

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
Card = MethodCard | EstimatorCard
Likely = Callable[[Mapping[str, Any]], str]
"""The name under which timm has the network whose weights a state dict holds, "" for none."""

BESIDE = ("*",)
"""What a rule drops that nobody wrote for the file: whatever lies beside the network, and nothing that lies inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of every key of a checkpoint.

    rule: the layout under which it was read. taken: keys of the network that were loaded.
    dropped: keys under the prefix that are known and not wanted (heads). outside: keys without the prefix.
    missing: optional keys of the network that the file lacks; the network keeps its own values there.
    """

    rule: KeyRule
    taken: tuple[str, ...]
    dropped: tuple[str, ...]
    outside: tuple[str, ...]
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for provenance: how many keys were taken, and the names of all others."""
        return {
            "entry": self.rule.entry,
            "prefix": self.rule.prefix,
            "taken": len(self.taken),
            "dropped": list(self.dropped),
            "outside": list(self.outside),
            "missing": list(self.missing),
        }


# --- picking the keys ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A checkpoint read under one rule, held against the network: the account, and what speaks against it."""

    account: Account
    lacking: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    longer: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.lacking or self.unexpected or self.misshapen)

    @property
    def problem(self) -> str:
        parts = (("missing", self.lacking), ("unexpected", self.unexpected), ("of another shape", self.misshapen))
        counted = [f"{len(keys)} {what}: {_first(keys)}" for what, keys in parts if keys]
        return "; ".join([*counted, *self.longer[:1]])


def select(
    checkpoint: Mapping[str, Any],
    rules: Sequence[KeyRule],
    expected: Mapping[str, Shape],
    *,
    source: str,
    parts: Collection[str] = (),
    likely: Likely | None = None,
) -> tuple[dict[str, torch.Tensor], Account]:
    """The network's weights out of a checkpoint: by the first rule that applies and fits.

    A rule applies when its entry, its prefix and its probes are in the file. It fits when every expected key is there
    in the right shape or optional, and every other key under the prefix is one to drop.

    expected: name -> shape of the network's state. source: what the file is called in messages. parts: names of the
    network's children, to which those without weights belong too. likely: tells whose weights a file holds instead.
    Raises CheckpointError, which says what was found and what was expected, when no rule applies and fits.
    """
    parts = _parts(expected, parts)
    readings = [_held_against(state, rule, expected, parts) for rule in rules if (state := _applies(checkpoint, rule))]
    for reading in readings:
        if reading.fits:
            state, prefix = _entry(checkpoint, reading.account.rule.entry), reading.account.rule.prefix
            return {key: state[prefix + key] for key in reading.account.taken}, reading.account
    if readings:
        rule = readings[0].account.rule
        other = _named(_under(checkpoint, rule), likely, source)
        if not rule.probe:  # it applies to any method's
            other = other or _look_alikes(checkpoint, source)
        raise CheckpointError(
            f"{source} does not fit the network: keys at {_place(rule)}: {readings[0].problem}; "
            f"{other or 'give a checkpoint of this architecture'}"
        )
    wanted = " or ".join(_wanted(rule, checkpoint) for rule in rules)
    raise CheckpointError(
        f"{source} is laid out otherwise than expected: {_seen(checkpoint)}; expected {wanted}; "
        f"{_suggestion(checkpoint, expected, parts, source)}"
    )


def holds_network(
    checkpoint: Mapping[str, Any],
    rules: Sequence[KeyRule],
    expected: Mapping[str, Shape],
    parts: Collection[str] = (),
) -> bool:
    """Whether `select` finds the network: some rule applies to the checkpoint and fits."""
    parts = _parts(expected, parts)
    states = ((rule, _applies(checkpoint, rule)) for rule in rules)
    return any(_held_against(state, rule, expected, parts).fits for rule, state in states if state)


def detect(
    checkpoint: Mapping[str, Any],
    expected: Mapping[str, Shape],
    *,
    source: str,
    parts: Collection[str] = (),
    likely: Likely | None = None,
) -> KeyRule:
    """The rule under which a foreign file holds the network: some entry and prefix under which all its keys lie.

    What lies beside the network there (heads) is dropped. What lies inside it and has no place there (a deeper stage,
    gates, scales, registers) means that the file is another network's, though all keys of this one are in it: its maps
    would be those of neither. parts, likely: as of `select`.
    Where several copies of the network fit (a momentum encoder beside its query encoder), the one that its authors
    evaluate is taken where that is known.

    Raises CheckpointError when nothing fits, or when the choice has to be made by a person.
    """
    parts = _parts(expected, parts)
    rules = _fitting(checkpoint, expected, parts)
    if not rules:
        raise CheckpointError(_no_fit(checkpoint, expected, parts, source, likely))
    chosen = _evaluated(rules)
    if chosen is None:
        raise CheckpointError(
            f"{source} holds the network {len(rules)} times, at {'; '.join(map(_place, rules))}; choose one with "
            "--set checkpoint.key=… --set checkpoint.prefix=…"
        )
    return chosen


_PREFERRED_COPIES = ("encoder_q", "model_q", "online", "teacher", "base_encoder")
"""Which copy to evaluate: the query (MoCo) or online (BYOL) network, but the teacher of DINO and its heirs."""


def _evaluated(rules: Sequence[KeyRule]) -> KeyRule | None:
    """The one copy of a network that is evaluated, None where that is not known."""
    if len(rules) == 1:
        return rules[0]
    for sign in _PREFERRED_COPIES:
        chosen = [rule for rule in rules if sign in f"{rule.entry}.{rule.prefix}"]
        if len(chosen) == 1:
            return chosen[0]
    return None


def fits_layout(checkpoint: Mapping[str, Any], rule: KeyRule) -> bool:
    """Whether a checkpoint is laid out as a rule says: its entry, its prefix and its probes are there."""
    return bool(_applies(checkpoint, rule))


def _applies(checkpoint: Mapping[str, Any], rule: KeyRule) -> Mapping[str, Any]:
    """The state dict that a rule speaks of, or {} when the file is not laid out so."""
    state = _entry(checkpoint, rule.entry)
    if not any(key.startswith(rule.prefix) for key in state):
        return {}
    return state if all(key in state and _like(_shape(state[key]), shape) for key, shape in rule.probe) else {}


def _under(checkpoint: Mapping[str, Any], rule: KeyRule) -> dict[str, Any]:
    """What lies at a rule's entry under its prefix, by the rest of the name."""
    state = _entry(checkpoint, rule.entry)
    return {key.removeprefix(rule.prefix): value for key, value in state.items() if key.startswith(rule.prefix)}


def _parts(expected: Mapping[str, Shape], parts: Collection[str]) -> frozenset[str]:
    """The names that stand first in the keys of a network, and those of its children without weights."""
    return frozenset({key.partition(".")[0] for key in expected if "." in key} | set(parts))


_HEADS = (
    "attn_pool", "classif", "classifier", "fc", "fc_norm", "global_pool", "head", "head_dist", "heads", "last_linear",
    "pre_logits",
)  # fmt: skip
"""Children that timm's networks have and that come after the last map: a head of any kind may lie in them."""

_TENSORS_BESIDE = frozenset({"mask_token", "proj", "queue"})
"""Tensors at the root of a network that no map depends on: of masked pictures, of CLIP's head, of MoCo."""

_NOTES = ("*num_batches_tracked", "*total_ops", "*total_params", "*relative_position_index", "*attn_mask")
"""Tensors inside networks that are no weights: counters, a profiler's, and tables that follow from the sizes."""


def _inside(key: str, value: object, parts: Collection[str]) -> bool:
    """Whether what a network has no place for would belong inside it: below one of its children, or at its root."""
    first, _, below = key.partition(".")
    if not isinstance(value, torch.Tensor) or first in _HEADS or _any_match(key, _NOTES):
        return False
    if below:
        return first in parts
    return value.numel() > 1 and first not in _TENSORS_BESIDE


def _held_against(
    state: Mapping[str, Any], rule: KeyRule, expected: Mapping[str, Shape], parts: Collection[str]
) -> _Reading:
    def unwanted(key: str) -> bool:
        if rule.drop == BESIDE:
            return not _inside(key, state[rule.prefix + key], parts)
        return _any_match(key, rule.drop)

    under = {key.removeprefix(rule.prefix) for key in state if key.startswith(rule.prefix)}
    absent = [key for key in expected if key not in under]
    extra = [key for key in under if key not in expected]
    dropped = {key for key in extra if unwanted(key)}
    taken = tuple(key for key in expected if key in under)
    return _Reading(
        account=Account(
            rule=rule,
            taken=taken,
            dropped=tuple(sorted(dropped)),
            outside=tuple(sorted(key for key in state if not key.startswith(rule.prefix))),
            missing=tuple(key for key in absent if _any_match(key, rule.optional)),
        ),
        lacking=tuple(key for key in absent if not _any_match(key, rule.optional)),
        unexpected=tuple(sorted(set(extra) - dropped, key=_in_order)),
        longer=_longer_lists(extra, expected),
        misshapen=tuple(
            f"{key} {_described(state[rule.prefix + key])} instead of {expected[key]}"
            for key in taken
            if _shape(state[rule.prefix + key]) != expected[key]
        ),
    )


def _in_order(key: str) -> tuple[tuple[int, str], ...]:
    """Sorts keys by their parts, numbers by value."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in key.split("."))


def _longer_lists(extra: Iterable[str], expected: Mapping[str, Shape]) -> tuple[str, ...]:
    """Of the numbered lists of a network that go on in a file: where they end in either."""
    own, held = _ends(expected), _ends(extra)
    return tuple(f"{name} goes on to {held[name]}, here it ends at {end}" for name, end in own.items()
                 if held.get(name, end) > end)  # fmt: skip


def _ends(keys: Iterable[str]) -> dict[str, int]:
    """The largest number of each numbered list."""
    ends: dict[str, int] = {}
    for key in keys:
        before: list[str] = []
        for part in key.split("."):
            if part.isdigit() and before:
                name = ".".join(before)
                ends[name] = max(ends.get(name, 0), int(part))
            before.append(part)
    return ends


def _fitting(checkpoint: Mapping[str, Any], expected: Mapping[str, Shape], parts: Collection[str]) -> list[KeyRule]:
    """All rules under which the whole network is there, and nothing more of it."""
    rules = _candidates(checkpoint, expected)
    return [rule for rule in rules if _held_against(_entry(checkpoint, rule.entry), rule, expected, parts).fits]


def _candidates(checkpoint: Mapping[str, Any], expected: Mapping[str, Shape]) -> list[KeyRule]:
    """A rule for every place in a file where the network's first key lies."""
    return [
        KeyRule(entry=entry, prefix=prefix, drop=BESIDE)
        for entry, state in _states(checkpoint)
        for prefix in _prefixes(state, expected)
    ]


def _prefixes(state: Mapping[str, Any], expected: Mapping[str, Shape]) -> list[str]:
    """Everything that stands before the name of the network's first key."""
    first = next(iter(expected), "")
    return sorted({key.removesuffix(first) for key in state if key.endswith(first)})


_DEEPEST = 5


def _states(checkpoint: Mapping[str, Any], entry: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(entry, dictionary) of every dictionary in a checkpoint that holds tensors, nested ones as "outer.inner"."""
    if any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        yield entry, {key: value for key, value in checkpoint.items() if isinstance(key, str)}
    for key, value in checkpoint.items():
        if isinstance(value, Mapping) and isinstance(key, str) and entry.count(".") < _DEEPEST:
            yield from _states(value, f"{entry}.{key}" if entry else key)


def _entry(checkpoint: Mapping[str, Any], entry: str) -> Mapping[str, Any]:
    """The dictionary at "state_dict", or at "outer.inner"; {} where there is none."""
    return dict(_states(checkpoint)).get(entry, {})


def _no_fit(
    checkpoint: Mapping[str, Any],
    expected: Mapping[str, Shape],
    parts: Collection[str],
    source: str,
    likely: Likely | None,
) -> str:
    """Why a foreign file cannot be the network, by the place that comes nearest."""
    rules = _candidates(checkpoint, expected)
    readings = [_held_against(_entry(checkpoint, rule.entry), rule, expected, parts) for rule in rules]
    advice = _look_alikes(checkpoint, source) or "give a checkpoint of this architecture"
    if not readings:
        return (
            f"{source} does not hold the network: {_seen(checkpoint)}; expected keys such as "
            f"{_first(tuple(expected))}; {advice}"
        )
    nearest = max(readings, key=lambda reading: len(reading.account.taken) - len(reading.misshapen))
    rule = nearest.account.rule
    advice = _named(_under(checkpoint, rule), likely, source) or advice
    return f"{source} does not fit the network: keys at {_place(rule)}: {nearest.problem}; {advice}"


def _named(state: Mapping[str, Any], likely: Likely | None, source: str) -> str:
    """Whose weights these are instead, and how to give them; "" where that is not known."""
    name = likely(state) if likely is not None else ""
    return f"these are the weights of timm's {name}: give them as --method timm:{name}@{source}" if name else ""


def _suggestion(
    checkpoint: Mapping[str, Any], expected: Mapping[str, Shape], parts: Collection[str], source: str
) -> str:
    rules, look_alikes = _fitting(checkpoint, expected, parts), _look_alikes(checkpoint, source)
    if not rules:
        return look_alikes or "give the file of this method, or name the method it belongs to"
    rule = _evaluated(rules) or rules[0]
    by_hand = (
        f"the network's keys are all there at {_place(rule)}: if that is what you want, give the file by its path with "
        f"--set checkpoint.key={rule.entry} --set checkpoint.prefix={rule.prefix}"
    )
    return f"{look_alikes}; {by_hand}" if look_alikes else by_hand


def _look_alikes(checkpoint: Mapping[str, Any], source: str) -> str:
    """Whose released files have these probes, of methods and estimators, and how to give it to them; "" for none."""
    found = {
        (option, card.name): f"{card.name}@{released.name}"
        for kind, option in (("methods", "--method"), ("estimators", "--estimator"))
        for card in registry.cards(kind).values()
        for released in reversed(card.checkpoints)
        for rule in released.layouts
        if rule.probe and fits_layout(checkpoint, rule)
    }
    return " or ".join(
        f"this looks like {'an' if name[0] in 'aeio' else 'a'} {name} file (as of {released}), to be given as {option} "
        f"{name}@{source}"
        for (option, name), released in found.items()
    )


def _seen(checkpoint: Mapping[str, Any]) -> str:
    """What a file holds, in a few words."""
    states = list(_states(checkpoint))
    if not states:
        return f"it holds no tensors (entries: {_first(tuple(map(str, checkpoint))) or 'none'})"
    places = (f"at {_entry_name(entry)} begin {_first(tuple(state))}" for entry, state in states[:2])
    return f"its keys {' and '.join(places)}"


def _wanted(rule: KeyRule, checkpoint: Mapping[str, Any]) -> str:
    """What a rule asks for, and what of it is there in another shape."""
    state = _entry(checkpoint, rule.entry)
    parts = [_place(rule)]
    for key, shape in rule.probe:
        other = f", not {_described(state[key])}" if key in state and not _like(_shape(state[key]), shape) else ""
        parts.append(f"{key} {shape}{other}")
    return " and ".join(parts)


def _place(rule: KeyRule) -> str:
    prefix = f"prefix {rule.prefix!r}" if rule.prefix else "no prefix"
    return f"{_entry_name(rule.entry)}, {prefix}"


def _entry_name(entry: str) -> str:
    return f"entry {entry!r}" if entry else "the top level"


def _first(keys: Sequence[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")


def _any_match(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _shape(value: object) -> Shape | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _described(value: object) -> str:
    return str(_shape(value)) if isinstance(value, torch.Tensor) else type(value).__name__


def _like(shape: Shape | None, pattern: Shape) -> bool:
    """Whether a shape is the pattern, in which -1 is any size."""
    if shape is None or len(shape) != len(pattern):
        return False
    return all(wanted in (-1, size) for size, wanted in zip(shape, pattern, strict=True))


# --- loading ---------------------------------------------------------------------------------------------


def load_into(module: nn.Module, checkpoint: Checkpoint, *, likely: Likely | None = None) -> Account | None:
    """Load a checkpoint's file into a network, all of it or not at all; None for a checkpoint without a file.

    Without rules, or for a user's file that none of the rules is made for, the layout is detected and logged, with a
    warning where another registered method has released files of that layout. likely: as of `select`.
    Raises CheckpointError for a file that cannot be read or does not hold this network.
    """
    if checkpoint.path is None:
        return None
    found = read_checkpoint(checkpoint.path, legacy_pickle=checkpoint.legacy_pickle)
    state = module.state_dict()
    expected = {key: tuple(value.shape) for key, value in state.items()}
    parts = [name for name, _ in module.named_children()]
    source = str(checkpoint.path)
    rules = checkpoint.rules
    foreign = checkpoint.kind == "file" and not any(fits_layout(found, rule) for rule in rules)
    if not rules or (foreign and not _chosen_by_hand(rules)):
        rules = (detect(found, expected, source=source, parts=parts, likely=likely),)
    weights, account = select(found, rules, expected, source=source, parts=parts, likely=likely)
    if account.rule not in checkpoint.rules:
        unused = _first(account.dropped) or "nothing"
        log.info("%s: weights found at %s; left aside there: %s", source, _place(account.rule), unused)
        if checkpoint.rules and (others := _look_alikes(found, source)):
            log.warning("%s is read as another method's: %s", source, others)
    module.load_state_dict({**state, **weights}, strict=True)
    return account


def normalised_as(checkpoint: Checkpoint, name: str, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Say that the pictures of a user's file are normalised as those of a name; the same as plain data for provenance.

    A file does not tell what its network was trained with. mean, std: per channel. {} for any other checkpoint.
    """
    if checkpoint.kind != "file":
        return {}
    log.info(
        "%s: pictures are normalised as %s has it (mean %s, standard deviation %s), whatever the file was trained with",
        checkpoint.path, name, _numbers(mean), _numbers(std),
    )  # fmt: skip
    return {"normalised_as": {"name": name, "mean": list(mean), "std": list(std)}}


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def architecture_of(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """The architecture that a file of the user's names, as a run of `bench train` does; None where it names none."""
    if checkpoint.kind != "file" or checkpoint.path is None:
        return None
    named = read_checkpoint(checkpoint.path).get("architecture")
    return named if isinstance(named, Mapping) else None


def in_layout(checkpoint: Checkpoint, rule: KeyRule) -> Checkpoint:
    """The same, read by `rule` where it is a file that names its architecture and no rules were chosen by hand."""
    if not checkpoint.rules or _chosen_by_hand(checkpoint.rules) or architecture_of(checkpoint) is None:
        return checkpoint
    return replace(checkpoint, rules=(rule,))


def _chosen_by_hand(rules: Sequence[KeyRule]) -> bool:
    """Whether the rules come from `--set checkpoint.…`, which is never second-guessed."""
    return all(rule.drop == BESIDE for rule in rules)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Networks built inside get the initialisation of `seed`; torch's global CPU generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


# --- identity --------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over the sorted names, dtypes, shapes and bytes of a module's state: the weights really in use."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --- which file is meant ---------------------------------------------------------------------------------


def resolve(
    card: Card,
    spec: str | None,
    *,
    weights_dir: Path,
    fetch: bool = True,
    seed: int = 0,
    entry: str | None = None,
    prefix: str | None = None,
    argument: str = "",
) -> Checkpoint:
    """The checkpoint that a user means by `METHOD@spec`, with its file in place and hashed.

    spec: None (the card's first), `random`, a released name, or the path of a file or of a producer's run folder, whose
    last checkpoint is taken. weights_dir: where released files are kept; one that is not there is fetched, unless
    `fetch` is False. seed: of `random`. entry, prefix: where the weights lie in a foreign file; one left out is tried
    among the usual ones. argument: what followed the colon in the method's name.

    Raises UnknownNameError for a name that is not released, CheckpointError for a file that is not there or not the
    one that was released, DownloadError for one that has to be fetched by hand (it says from where and to where).
    """
    if not card.trainable:
        return Checkpoint(name="none", kind="none")
    if spec == "random":
        return Checkpoint(name="random", kind="random", seed=seed)
    by_hand = _rules_by_hand(entry, prefix)
    if spec is not None and _means_a_file(spec, card):
        return _users_file(card, Path(spec).expanduser(), by_hand)
    if _is_family(card) and spec in (None, "pretrained"):
        return Checkpoint(name="pretrained", kind="pretrained")
    released = _released(card, spec, argument)
    path = _in_place(card, released, weights_dir / released.filename, fetch)
    return Checkpoint(
        name=released.name,
        kind="released",
        path=path,
        sha256=file_sha256(path),
        rules=by_hand or released.layouts,
        legacy_pickle=released.legacy_pickle,
    )


_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".ckpt", ".torch", ".pkl", ".bin")

_USUAL_ENTRIES = ("state_dict", "model", "model_state_dict", "net", "network", "teacher", "student", "")
_USUAL_PREFIXES = (
    "module.encoder_q.", "module.base_encoder.", "module.encoder.", "module.backbone.", "encoder_q.", "base_encoder.",
    "encoder.", "backbone.", "module.", "model.", "trunk.", "",
)  # fmt: skip


def _rules_by_hand(entry: str | None, prefix: str | None) -> tuple[KeyRule, ...]:
    """Rules of `--set checkpoint.key=…` and `checkpoint.prefix=…`; what lies beside the network is dropped."""
    if entry is None and prefix is None:
        return ()
    entries = _USUAL_ENTRIES if entry is None else (entry,)
    prefixes = _USUAL_PREFIXES if prefix is None else (prefix,)
    return tuple(KeyRule(entry=e, prefix=p, drop=BESIDE) for e in entries for p in prefixes)


def _means_a_file(spec: str, card: Card) -> bool:
    if any(spec == released.name for released in card.checkpoints):
        return False
    return "/" in spec or "\\" in spec or spec.endswith(_SUFFIXES) or Path(spec).exists()


def _users_file(card: Card, path: Path, by_hand: tuple[KeyRule, ...]) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; give the path of a checkpoint, or {_names(card)}")
    name = path.name
    if path.is_dir():
        name, path = path.resolve().name, _last_checkpoint(path)
    layouts = dict.fromkeys(rule for released in card.checkpoints for rule in released.layouts)
    return Checkpoint(
        name=name,
        kind="file",
        path=path,
        sha256=file_sha256(path),
        rules=by_hand or tuple(layouts),
        legacy_pickle=any(released.legacy_pickle for released in card.checkpoints),
    )


def _last_checkpoint(folder: Path) -> Path:
    """The checkpoint of most steps in a producer's run folder, `checkpoints/step-N.pt`."""
    steps = {path: path.stem.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*.pt")}
    numbered = [path for path, step in steps.items() if step.isdigit()]
    if numbered:
        return max(numbered, key=lambda path: int(steps[path]))
    if (folder / "record.json").is_file():
        raise CheckpointError(f"the run in {folder} has no checkpoint yet: go on with it by `bench train --resume`")
    raise CheckpointError(
        f"{folder} is a folder without checkpoints/step-N.pt, so no run of `bench train`: name the checkpoint file"
    )


def _released(card: Card, spec: str | None, argument: str) -> CheckpointCard:
    method = f"{card.name}:{argument}" if argument else card.name
    if not card.checkpoints and spec is None:
        raise CheckpointError(f"{method} has no released weights; give {method}@random or {method}@FILE")
    for released in card.checkpoints:
        if spec in (None, released.name):
            return released
    known = [released.name for released in card.checkpoints]
    raise UnknownNameError(f"{method} has no checkpoint {spec!r}.{near(spec or '', known)} Known: {_names(card)}")


def _is_family(card: Card) -> bool:
    """Whether the card speaks of many bodies (`timm:NAME`), whose weights the library that holds them fetches."""
    return isinstance(card, MethodCard) and bool(card.argument)


def _names(card: Card) -> str:
    own = [released.name for released in card.checkpoints] or (["pretrained"] if _is_family(card) else [])
    return ", ".join([*own, "random", "or a file"])


def _in_place(card: Card, released: CheckpointCard, target: Path, fetch: bool) -> Path:
    """The released file, there and checked, or an error that says how to get it."""
    if target.is_file():
        _check_hashes(released, target)
        return target
    if released.member:
        return _out_of_archive(card, released, target, fetch)
    if not released.url or not fetch:
        raise DownloadError(f"{card.name}@{released.name} needs {released.filename}: {_by_hand(released, target)}")
    return download.fetch(
        released.url, target, sha256=released.sha256, md5=released.md5, size=released.bytes, what=released.filename
    )


def _out_of_archive(card: MethodCard | EstimatorCard, released: CheckpointCard, target: Path, fetch: bool) -> Path:
    """The released file, taken out of its archive, which is kept: others may lie in it."""
    archive = target.with_name(f"{card.name}_{PurePosixPath(urlsplit(released.url).path).name}")
    if not archive.is_file():
        if not fetch:
            raise DownloadError(
                f"{card.name}@{released.name} needs {released.filename}: {_by_hand(released, archive)}, or take "
                f"{released.member} out of it and put that at {target}"
            )
        download.fetch(released.url, archive)
    download.extract_file(archive, released.member, target)
    _check_hashes(released, target)
    log.info("%s is out of %s, which may be deleted when nothing else is needed of it", target, archive)
    return target


def _by_hand(released: CheckpointCard, target: Path) -> str:
    origin = f"download {released.url}" if released.url else released.manual or "which has no public address"
    return f"{origin} and put it at {target}"


def _check_hashes(released: CheckpointCard, path: Path) -> None:
    wrong = download.verify(path, sha256=released.sha256, md5=released.md5, size=released.bytes)
    if wrong:
        raise CheckpointError(
            f"{path} is not the released {released.name}: {wrong}; delete it to fetch it again, or give it by another "
            "path as a file of your own"
        )
