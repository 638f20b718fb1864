"""MANIFEST.in names every file of the tests and examples: an sdist runs its tests."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What running leaves behind.
MADE = ("*.pyc", "*.so", "*.o", "*.png")


@pytest.mark.parametrize("folder", ["tests", "examples", "docs", "dsm"])
def test_every_file_is_named(folder):
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    patterns = [pattern for word, *rest in lines if word == "recursive-include" and rest[0] == folder
                for pattern in rest[1:]]  # fmt: skip
    excluded = [ROOT / name for word, *rest in lines if word == "exclude" for name in rest]
    files = [
        path
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
    ]
    left = [
        str(path.relative_to(ROOT))
        for path in files
        if path not in excluded and not any(fnmatch(path.name, pattern) for pattern in (*patterns, *MADE))
    ]
    assert files and left == []
