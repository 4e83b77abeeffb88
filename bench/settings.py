"""Settings are typed dataclasses: text from the command line in, checked values out, unknown keys refused."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bench.errors import SettingError
from bench.records import Preset, ProtocolCard
from bench.registry import near

__all__ = [
    "SEARCH",
    "InputSettings",
    "ObjectSettings",
    "Override",
    "apply",
    "deciding",
    "mask_set",
    "parse_overrides",
    "parse_size",
    "pick_preset",
    "setting",
]

T = TypeVar("T")

LARGEST_SIDE = 8192
"""Pixels: a larger input is a typing error, not a plan."""


SEARCH = "search"
"""What `tap` says for all feature maps of the method."""


def setting(
    default: Any,
    about: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    decides: bool = True,
) -> Any:
    """A dataclass field with a one-line description and, for numbers, the closed range it takes.

    above: numbers must be larger than this.
    decides: False for what changes no figure (how a run is watched, what is kept): it is not part of a run's key.
    """
    return dataclasses.field(
        default=default,
        metadata={"about": about, "minimum": minimum, "maximum": maximum, "above": above, "decides": decides},
    )


def deciding(settings: Any) -> dict[str, Any]:
    """The settings that decide figures, by name, as plain data."""
    free = {field.name for field in dataclasses.fields(settings) if not field.metadata.get("decides", True)}
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What every protocol may say about the pictures and maps it reads."""

    size: str = setting("native", "network input: native (own size, padded to the stride), N (N×N) or HxW (stretched)")
    interpolation: Literal["bicubic", "bilinear"] = setting("bicubic", "how pictures are stretched to `size`")
    tap: str = setting(
        "", "the map to read, NAME,NAME or `search` (all) to compare several; empty: the method's default"
    )
    dtype: Literal["float32", "float16"] = setting("float32", "number format in which maps are kept and read")

    @property
    def compares(self) -> bool:
        """`tap` names several maps."""
        return self.tap == SEARCH or "," in self.tap

    @property
    def reads_of_train(self) -> Literal["nothing", "pictures", "labels"]:
        """What figures depend on of the train split, beside the scored one; labels: its pictures too."""
        return "nothing"


@dataclass(frozen=True, kw_only=True)
class ObjectSettings(InputSettings):
    """Where the foreground of a picture comes from, and how the embedding of its object is made."""

    foreground: str = setting(
        "auto",
        "auto (adapter where the method has a foreground, else none), adapter, masks:NAME, masks:./FOLDER or none",
    )
    threshold: float = setting(0.0, "a pixel is foreground where the raw logit is above this (0: probability one half)")
    pooling: Literal["mean", "logit"] = setting(
        "mean", "the embedding of an object: the mean over its pixels, or the sum weighted by their logits"
    )

    @property
    def with_own_foreground(self) -> ObjectSettings:
        """The same, `auto` being the method's own foreground: for where there must be one."""
        return dataclasses.replace(self, foreground="adapter") if self.foreground == "auto" else self


_MASKS = "masks:"


def mask_set(foreground: str) -> str:
    """The set of mask files that a `foreground` setting names, "" where it names none.

    Raises SettingError for what is none of auto, adapter, masks:NAME and none.
    """
    if foreground.startswith(_MASKS) and foreground != _MASKS:
        return foreground.removeprefix(_MASKS)
    known = ("auto", "adapter", "none", "masks:NAME")
    if foreground not in known[:3]:
        raise SettingError(
            f"foreground={foreground} does not fit.{near(foreground, known)} Expected {', '.join(known)}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Override:
    """One `--set [owner.]key=value`."""

    owner: str
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.key}={self.value}" if self.owner else f"{self.key}={self.value}"


def parse_overrides(texts: Iterable[str]) -> tuple[Override, ...]:
    """`["kmeans.pca=0", "seed=1"]` -> overrides; SettingError where there is no `=` or no key."""
    overrides = []
    for text in texts:
        name, equals, value = text.partition("=")
        owner, _, key = name.strip().rpartition(".")
        if not equals or not key:
            raise SettingError(f"--set {text!r} was not understood; it is written [owner.]key=value, e.g. kmeans.pca=0")
        overrides.append(Override(owner, key, value.strip()))
    return tuple(overrides)


def parse_size(text: str) -> tuple[int, int] | None:
    """`native` -> None, `512` -> (512, 512), `360x480` -> (360, 480) as height × width in pixels."""
    if text == "native":
        return None
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdigit() and 8 <= int(part) <= LARGEST_SIDE for part in parts):
        return int(parts[0]), int(parts[-1])
    raise SettingError(
        f"size {text!r} was not understood; expected native, N or HxW with sides of 8 to {LARGEST_SIDE} pixels"
    )


def apply(base: T, values: Mapping[str, Any], owner: str) -> T:
    """A copy of the dataclass `base` with `values` (text is converted by the field's type).

    Raises SettingError for an unknown key (with near names and all keys) and for a value of the wrong type or range.
    """
    fields = {field.name: field for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in values.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise SettingError(f"{owner} has no setting {key!r}.{near(key, fields)} Settings of {owner}: {known}")
        changes[key] = _convert(value, hints[key], fields[key], f"{owner}.{key}")
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _convert(value: Any, hint: Any, field: dataclasses.Field[Any], name: str) -> Any:
    try:
        result = _as_type(value, hint)
    except ValueError as error:
        raise SettingError(f"{name}={value} does not fit: expected {error}") from None
    numbers = result if isinstance(result, tuple) else (result,)
    low, high, above = (field.metadata.get(bound) for bound in ("minimum", "maximum", "above"))
    for number in numbers:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            if low is not None and number < low:
                raise SettingError(f"{name}={value} does not fit: expected at least {low}")
            if above is not None and number <= above:
                raise SettingError(f"{name}={value} does not fit: expected numbers above {above}")
            if high is not None and number > high:
                raise SettingError(f"{name}={value} does not fit: expected at most {high}")
    return result


def _as_type(value: Any, hint: Any) -> Any:
    """The value as the annotated type; ValueError whose text says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        for choice in arguments:
            if value == choice or str(value).lower() == str(choice).lower():
                return choice
        raise ValueError(f"{'one of ' if arguments[1:] else ''}{', '.join(str(choice) for choice in arguments)}")
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(value, arguments)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else (value,)
        return tuple(_as_type(item, arguments[0]) for item in items if item != "")
    if hint is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in known:
            raise ValueError("true or false")
        return known[str(value).lower()]
    if hint is str:
        return str(value)
    try:
        number = hint(value)
    except (TypeError, ValueError):
        raise ValueError("a whole number" if hint is int else "a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _as_one_of(value: Any, types_: tuple[Any, ...]) -> Any:
    """The value as the first type that takes it, words before numbers."""
    if type(None) in types_ and (value is None or str(value).lower() == "none"):
        return None
    wanted: list[str] = []
    given = [hint for hint in types_ if hint is not type(None)]
    for hint in sorted(given, key=lambda hint: str(typing.get_origin(hint)) != str(Literal)):
        try:
            return _as_type(value, hint)
        except ValueError as error:
            wanted.append(str(error))
    raise ValueError(" or ".join(reversed(wanted)))


def pick_preset(card: ProtocolCard, name: str | None, default: str) -> Preset:
    """The preset called `name`; without a name the data set's default, else the card's first."""
    presets = {preset.name: preset for preset in card.presets}
    if name is None:
        return presets.get(default, card.presets[0])
    if name not in presets:
        raise SettingError(
            f"{card.name} has no preset {name!r}.{near(name, presets)} Presets of {card.name}: {', '.join(presets)}"
        )
    return presets[name]
