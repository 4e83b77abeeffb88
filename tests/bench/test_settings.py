"""Settings: text in, checked values out, and errors that name the fix."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from bench.errors import SettingError
from bench.registry import card as find_card
from bench.registry import load, names
from bench.settings import Override, apply, mask_set, parse_overrides, parse_size, pick_preset, setting


@dataclass(frozen=True, kw_only=True)
class Example:
    rate: float = setting(0.1, "a rate", minimum=0, maximum=1)
    count: int = setting(3, "a count", minimum=1)
    mode: Literal["fast", "exact"] = setting("fast", "a mode")
    whiten: bool = setting(True, "a switch")
    sizes: tuple[int, ...] = setting((), "some sizes", minimum=1)
    name: str | None = setting(None, "a name")
    depth: int | Literal["auto"] = setting("auto", "a depth", minimum=0)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-2", 0.01),
        ("count", "7", 7),
        ("mode", "EXACT", "exact"),
        ("whiten", "false", False),
        ("sizes", "21,50", (21, 50)),
        ("name", "x", "x"),
        ("name", "none", None),
        ("whiten", True, True),
        ("depth", "auto", "auto"),
        ("depth", "3", 3),
        ("depth", 0, 0),
    ],
)
def test_text_becomes_the_annotated_type(key, text, value):
    changed = getattr(apply(Example(), {key: text}, "example"), key)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("rate", "much", "a number"),
        ("rate", "2", "at most 1"),
        ("rate", "nan", "a finite number"),
        ("rate", "inf", "a finite number"),
        ("count", "0", "at least 1"),
        ("count", "1.5", "a whole number"),
        ("mode", "quick", "one of fast, exact"),
        ("whiten", "maybe", "true or false"),
        ("sizes", "21,x", "a whole number"),
        ("sizes", "0", "at least 1"),
        ("depth", "deep", "a whole number or auto"),
        ("depth", "-1", "at least 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(key, text, says):
    with pytest.raises(SettingError, match=says) as caught:
        apply(Example(), {key: text}, "example")
    assert f"example.{key}={text}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_key_names_the_near_one_and_all():
    with pytest.raises(SettingError, match=r"no setting 'whitten'.*'whiten'.*rate, count, mode"):
        apply(Example(), {"whitten": "true"}, "example")


def test_overrides_are_split_at_the_first_equals_and_the_last_dot():
    assert parse_overrides(["kmeans.pca=0", "a.b.c=d=e", "seed=1"]) == (
        Override("kmeans", "pca", "0"),
        Override("a.b", "c", "d=e"),
        Override("", "seed", "1"),
    )


@pytest.mark.parametrize("text", ["pca", "=3", "kmeans.=3"])
def test_malformed_overrides_are_refused(text):
    with pytest.raises(SettingError, match=r"\[owner\.\]key=value"):
        parse_overrides([text])


def test_sizes():
    assert parse_size("native") is None
    assert parse_size("512") == (512, 512)
    assert parse_size("360x480") == (360, 480)
    for wrong in ("", "0", "12x", "a", "1x2x3", "-5"):
        with pytest.raises(SettingError, match="native, N or HxW"):
            parse_size(wrong)


@pytest.mark.parametrize("protocol", names("protocols"))
def test_every_preset_value_is_a_setting_of_its_protocol(protocol):
    card = find_card("protocols", protocol)
    for preset in card.presets:
        changed = apply(card.settings(), preset.values(), protocol)
        for key, choice in preset.choices.items():
            assert getattr(changed, key) == choice.value
            assert choice.source.value in ("seed", "paper", "code", "author", "ours")


@pytest.mark.parametrize("protocol", names("protocols"))
def test_every_setting_of_a_protocol_has_a_reader(protocol):
    """A setting that nobody reads is a lie: each field is used as an attribute somewhere in the code."""
    from pathlib import Path

    card = find_card("protocols", protocol)
    root = Path(__file__).parents[2]
    code = "\n".join(path.read_text() for room in ("bench", "protocols") for path in (root / room).glob("*.py"))
    for field in dataclasses.fields(card.settings):
        assert f".{field.name}" in code, f"{protocol}.{field.name} is read nowhere"
    assert callable(load(card.run))


def test_presets_are_found_by_name_and_default():
    card = find_card("protocols", "kmeans")
    assert pick_preset(card, None, "native").name == "native"
    assert pick_preset(card, None, "nobody has this").name == card.presets[0].name
    with pytest.raises(SettingError, match=r"no preset 'papr'.*'paper'"):
        pick_preset(card, "papr", "native")


@pytest.mark.parametrize(
    ("text", "name"), [("auto", ""), ("adapter", ""), ("none", ""), ("masks:noisy", "noisy"), ("masks:a:b", "a:b")]
)
def test_a_foreground_may_name_a_mask_set(text, name):
    assert mask_set(text) == name


@pytest.mark.parametrize("text", ["", "masks:", "masks", "true", "adaptr"])
def test_other_foregrounds_are_refused(text):
    with pytest.raises(SettingError, match=r"foreground=.*does not fit\..*auto, adapter, none, masks:NAME"):
        mask_set(text)
