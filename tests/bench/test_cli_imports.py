"""What a person only asks for is answered at once: no heavy library is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "faiss", "sklearn", "pandas", "scipy"}

SCRIPT = """
import json, sys
from bench import cli
try:
    cli.main()
except SystemExit as ended:
    print(json.dumps([ended.code or 0, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "eval --help", "list methods", "list protocols", "list datasets", "list checkpoints", "list presets",
     "list methods --json"],
)  # fmt: skip
def test_nothing_heavy_is_imported(words):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words.split()], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip()
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status == 0
    assert HEAVY.isdisjoint(modules), sorted(HEAVY.intersection(modules))


def test_the_script_sees_what_is_imported():
    """The check above can fail: the plain import of a heavy module shows in its list."""
    done = subprocess.run(
        [sys.executable, "-c", "import scipy\n" + SCRIPT, "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "scipy" in json.loads(done.stderr.splitlines()[-1])[1]
