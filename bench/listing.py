"""What is registered, as plain rows for `bench list`."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

from bench import registry
from bench.errors import UnknownNameError

__all__ = ["KINDS", "listing", "render"]

KINDS = (*registry.GROUPS, "checkpoints", "presets")


def listing(kind: str) -> list[dict[str, Any]]:
    """One dictionary per registered thing; raises UnknownNameError for a kind that is not one of `KINDS`."""
    if kind not in KINDS:
        raise UnknownNameError(
            f"bench list {kind}: there is no such list.{registry.near(kind, KINDS)} Lists: {', '.join(KINDS)}"
        )
    if kind == "checkpoints":
        return list(_checkpoints())
    if kind == "presets":
        return list(_presets())
    return [
        {"name": _name(card), "summary": card.summary, **_facts(kind, card), "from": registry.origin(kind, name)}
        for name, card in registry.cards(kind).items()
    ]


def _name(card: Any) -> str:
    argument = getattr(card, "argument", "")
    return f"{card.name}:{argument}" if argument else str(card.name)


def _facts(kind: str, card: Any) -> dict[str, Any]:
    if kind == "methods":
        return {"options": _options(card)}
    if kind == "estimators":
        return {"options": _options(card), "notes": card.notes}
    if kind == "datasets":
        return {
            "classes": len(card.classes),
            "preset": card.default_preset,
            "masks": ", ".join(card.masks),
            "licence": card.licence,
        }
    return {"presets": ", ".join(preset.name for preset in card.presets)}


def _options(card: Any) -> str:
    return " ".join(f"{field.name}={field.default}" for field in dataclasses.fields(card.options))


def _checkpoints() -> Iterator[dict[str, Any]]:
    # whatever kind of card names released files
    for card in (card for kind in registry.GROUPS for card in registry.cards(kind).values()):
        for checkpoint in getattr(card, "checkpoints", ()):
            facts = {_NAMES.get(key, key): getattr(checkpoint, key) for key in _CHECKPOINT_FACTS}
            yield {"method": card.name, **facts}


_CHECKPOINT_FACTS = (
    "name", "filename", "url", "member", "manual", "bytes", "sha256", "md5", "licence", "training_data", "verified",
)  # fmt: skip
_NAMES = {"name": "checkpoint", "filename": "file", "training_data": "trained on"}


def _presets() -> Iterator[dict[str, Any]]:
    for kind in ("protocols", "producers"):
        for card in registry.cards(kind).values():
            for preset in card.presets:
                for key, choice in preset.choices.items():
                    yield {
                        "preset": f"{card.name}:{preset.name}",
                        "version": preset.version,
                        "setting": key,
                        "value": choice.value,
                        "source": choice.source.value,
                        "note": choice.note,
                    }


def render(kind: str, rows: list[dict[str, Any]]) -> str:
    """Rows of `listing(kind)` for the terminal: a plain table; checkpoints, whose facts are sentences, in blocks."""
    if not rows:
        return "nothing is registered"
    if kind == "checkpoints":
        width = max(_NARROWEST, shutil.get_terminal_size((100, 24)).columns)
        return "\n\n".join(_block(row, width) for row in rows)
    from tabulate import tabulate

    return tabulate(rows, headers="keys", tablefmt="simple")


_NARROWEST = 40


def _block(row: dict[str, Any], width: int) -> str:
    """A released file, in lines of at most `width` characters (an address is never broken)."""
    source = f"{row['url']}, in it {row['member']}" if row["member"] else row["url"] or row["manual"]
    lines = {
        "file": row["file"],
        "from": source,
        # a size that is known to some digits stands in `verified`
        **({"size": f"{row['bytes'] / 1e6:,.1f} MB"} if row["bytes"] else {}),
        "hash": ", ".join(f"{kind} {row[kind]}" for kind in ("sha256", "md5") if row[kind]) or "not published",
        "licence": row["licence"],
        "trained on": row["trained on"],
        "verified": row["verified"],
    }
    return "\n".join(
        [f"{row['method']}@{row['checkpoint']}", *(_entry(key, text, width) for key, text in lines.items())]
    )


def _entry(key: str, text: str, width: int) -> str:
    return textwrap.fill(
        text or "not stated",
        width,
        initial_indent=f"  {key:<{_KEY_WIDTH}}",
        subsequent_indent=" " * (2 + _KEY_WIDTH),
        break_long_words=False,
        break_on_hyphens=False,
    )


_KEY_WIDTH = len("trained on  ")
