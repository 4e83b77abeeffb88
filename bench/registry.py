"""Names -> cards, through entry points: the built-ins come in by the same door as everybody's plugins."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bench.errors import InputError, UnknownNameError

__all__ = ["GROUPS", "card", "cards", "load", "names", "near", "origin"]

log = logging.getLogger(__name__)

GROUPS = {
    "methods": "bench.adapters",
    "protocols": "bench.protocols",
    "datasets": "bench.datasets",
    "producers": "bench.producers",
    "estimators": "bench.estimators",
}
"""What can be registered, and the entry-point group of each."""


@cache
def _points(kind: str) -> Mapping[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUPS[kind]), key=lambda p: p.name)}


def names(kind: str) -> tuple[str, ...]:
    """All registered names of a kind ("methods", "protocols", …), sorted."""
    return tuple(_points(kind))


def origin(kind: str, name: str) -> str:
    """The distribution that registered a name ("densebench" for the built-ins)."""
    distribution = _points(kind)[name].dist
    return distribution.name if distribution else "unknown"


def near(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x' or 'y'?", or "" when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in close)}?" if close else ""


def card(kind: str, name: str) -> Any:
    """The card registered under a name.

    Raises UnknownNameError with near names, all names and where plugins come from; InputError when the plugin that
    registered the name cannot be imported.
    """
    points = _points(kind)
    if not points and kind != "producers":
        raise InputError(
            f"no {kind} are registered: the package is not installed; run `pip install -e .` in the checkout"
        )
    if name not in points:
        raise UnknownNameError(
            f"there is no {kind[:-1]} called {name!r}.{near(name, points)} Known {kind}: {', '.join(points) or 'none'} "
            f"(plugins register in the entry-point group {GROUPS[kind]!r})"
        )
    try:
        return points[name].load()
    except Exception as error:
        raise InputError(
            f"the {kind[:-1]} {name!r} of {origin(kind, name)} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def cards(kind: str) -> dict[str, Any]:
    """All cards of a kind; a plugin that cannot be loaded is left out with a warning."""
    found = {}
    for name in names(kind):
        try:
            found[name] = card(kind, name)
        except InputError as error:
            log.warning("%s", error)
    return found


def load(target: str) -> Any:
    """The object named by "module:attribute", imported now."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
