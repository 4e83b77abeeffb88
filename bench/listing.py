"""What is registered, as plain rows for `bench list`."""

from __future__ import annotations

import dataclasses
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
        options = {field.name: field.default for field in dataclasses.fields(card.options)}
        return {"options": " ".join(f"{key}={value}" for key, value in options.items())}
    if kind == "datasets":
        return {"classes": len(card.classes), "preset": card.default_preset, "licence": card.licence}
    return {"presets": ", ".join(preset.name for preset in card.presets)}


def _checkpoints() -> Iterator[dict[str, Any]]:
    for card in registry.cards("methods").values():
        for checkpoint in card.checkpoints:
            digest = checkpoint.sha256 or (f"md5 {checkpoint.md5}" if checkpoint.md5 else "")
            yield {
                "checkpoint": f"{card.name}@{checkpoint.name}",
                "file": checkpoint.filename,
                "source": checkpoint.url or checkpoint.manual,
                "hash": digest,
                "licence": checkpoint.licence,
                "trained on": checkpoint.training_data,
                "verified": checkpoint.verified,
            }


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


def render(rows: list[dict[str, Any]]) -> str:
    """A plain text table; one line where there is nothing to list."""
    from tabulate import tabulate

    return tabulate(rows, headers="keys", tablefmt="simple") if rows else "nothing is registered"
