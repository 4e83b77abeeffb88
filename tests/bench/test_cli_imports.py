"""What a person only asks for is answered at once: no heavy library is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "faiss", "sklearn", "skimage", "pandas", "scipy"}

SCRIPT = """
import json, sys
from bench import cli
try:
    cli.main()
except SystemExit as ended:
    print(json.dumps([ended.code or 0, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


WORDS = (
    "--help", "--version", "eval --help", "list methods", "list protocols", "list datasets", "list producers",
    "list estimators", "masks --help", "list checkpoints", "list presets", "list methods --json",
)  # fmt: skip


def modules_after(words: str, before: str = "") -> set[str]:
    """The top-level modules that a fresh process has imported when the command ends."""
    done = subprocess.run(
        [sys.executable, "-c", before + SCRIPT, *words.split()], capture_output=True, text=True, timeout=60, check=True
    )
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0
    assert done.stdout.strip()
    return set(modules)


@pytest.mark.parametrize("words", WORDS)
def test_nothing_heavy_is_imported(words):
    assert modules_after(words) & HEAVY == set()


def test_an_import_would_be_seen():
    assert modules_after("--version", before="import scipy\n") & HEAVY == {"scipy"}
