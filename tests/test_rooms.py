"""Who may import whom: the layers of the core, and the wall between the core and the plugins."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = [
    {"errors", "records", "metrics", "cluster", "dense", "distinct", "neighbours", "objects", "packed"},
    {"paths", "clock", "progress", "cache", "files"},
    {"distributed", "panels", "prefetch", "runs", "hosts"},
    {"processes", "kernels"},
    {
        "contracts",
        "registry",
        "images",
        "download",
        "checkpoints",
        "backbone",
        "networks.resnet",
        "usercode",
        "settings",
    },
    {"networks.deeplab", "networks.iic", "networks.maskcontrast", "networks.segmenter", "trainer"},
    {"networks.basnet", "networks.drn", "networks.u2net", "saliency"},
    {
        "weights",
        "store",
        "datasets",
        "datasets.folder",
        "datasets.maskrecord",
        "datasets.pictures",
        "datasets.shapes",
        "datasets.voc",
    },
    {"augment", "batches", "contrast", "journal", "mutual", "warp"},
    {"features", "fitting"},
    {"labels", "exchange", "families", "foregrounds", "plan", "tables", "testing", "listing"},
    {"formats", "published"},
    {"work"},
    {"predictions"},
    {"evaluate"},
    {"price", "doctor", "predict", "produce", "masks"},
    {
        "producers",
        "producers._cooccurrence",
        "producers._course",
        "producers._crops",
        "producers._export",
        "producers._iic",
        "producers._maskcontrast",
        "producers._pairs",
        "producers._patches",
        "producers._settings",
        "producers.cooccurrence",
        "producers.iic",
        "producers.maskcontrast",
    },
    {"quickstart"},
    {"estimators", "estimators._contrast", "estimators._deepusps", "estimators._network"},
    {"estimators.basnet", "estimators.contrast", "estimators.deepusps", "estimators.u2net"},
    {"cli"},
    {"__main__"},
]
"""Each module may import what stands in its own layer or before it."""

PLUGINS_MAY_IMPORT = {
    "adapters": {"records", "contracts", "errors", "settings", "backbone", "weights", "checkpoints", "registry"},
    "protocols": {
        *{"records", "contracts", "errors", "settings", "metrics", "cluster", "distinct", "objects"},
        *{"batches", "dense", "distributed", "images", "neighbours", "trainer", "warp"},
    },
}


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        if "adapters" in path.parts[-3:-1] or "protocols" in path.parts[-3:-1]:
            continue
        name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at any depth, as written after `bench.`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            parts = node.module.split(".")
            if parts[0] in ("adapters", "protocols"):
                yield node.module
            if parts[0] == "bench":
                inner = ".".join(parts[1:])
                known = {name for layer in LAYERS for name in layer} | {"adapters", "protocols", "networks"}
                for alias in node.names:
                    deeper = f"{inner}.{alias.name}".strip(".")
                    yield deeper if deeper in known else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] in ("adapters", "protocols"):
                    yield alias.name
                elif parts[0] == "bench":
                    yield ".".join(parts[1:])


def layer_of(name: str) -> int:
    for index, layer in enumerate(LAYERS):
        if name in layer:
            return index
    raise AssertionError(f"bench.{name} stands in no layer: add it to LAYERS in {Path(__file__).name}")


def violations(name: str, path: Path) -> list[str]:
    own = layer_of(name)
    bad = []
    for target in imported(path):
        top = target.split(".")[0]
        if top in ("adapters", "protocols") or (top in ("producers", "estimators") and not name.startswith(top)):
            bad.append(f"bench.{name} imports the plugin {target}")
        elif target not in ("", "__version__", "networks") and layer_of(target) > own:
            bad.append(f"bench.{name} imports bench.{target}, which stands above it")
    return bad


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(n, p, id=n) for n, p in modules(ROOT / "bench") if n not in ("networks",)]
)
def test_core_imports_only_downwards(name, path):
    assert violations(name, path) == []


def plugin_violations(room: str, path: Path) -> list[str]:
    bad = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            bad += [f"{path.name} imports its sibling {n}" for n in names if not str(n).startswith("_")]
    for target in imported(path):
        if target.split(".")[0] in ("adapters", "protocols"):
            bad.append(f"{path.name} imports {target}")
        elif target and target not in PLUGINS_MAY_IMPORT[room] and not target.startswith("networks"):
            bad.append(f"{path.name} imports bench.{target}")
    return bad


@pytest.mark.parametrize("room", ["adapters", "protocols"])
def test_plugins_import_the_core_and_no_sibling(room):
    assert [v for path in sorted((ROOT / room).glob("*.py")) for v in plugin_violations(room, path)] == []


def test_planted_violations_are_caught(tmp_path):
    planted = tmp_path / "metrics.py"
    planted.write_text("from bench.cli import app\nimport bench.adapters.swav\n")
    assert len(violations("metrics", planted)) == 2
    planted.write_text("from bench.producers.maskcontrast import CARD\nfrom bench.estimators.basnet import CARD\n")
    assert len(violations("cli", planted)) == 2
    planted = tmp_path / "swav.py"
    planted.write_text(
        "from .moco_v2 import CARD\nfrom bench.evaluate import evaluate\nfrom bench.protocols import kmeans\n"
    )
    assert len(plugin_violations("adapters", planted)) == 3
