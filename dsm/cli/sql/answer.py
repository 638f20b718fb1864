"""Rows of an answer, as text and as JSON.

Owns how values are shown.  Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from dsm.cli.status.words import table


def as_text(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return aligned columns; the names alone when there are no rows."""
    return table(names, [[_shown(value) for value in row] for row in rows]) or "  ".join(names)


def as_json(names: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> str:
    """Return one line: an object with `rows`, a list of objects, and whatever else is given."""
    unique = _unique(names)
    return json.dumps({**more, "rows": [dict(zip(unique, map(_plain, row), strict=True)) for row in rows]})


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are alike: ``a``, ``a_2``."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name}_{number}"
        found.append(candidate)
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.hex() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.hex() if isinstance(value, bytes) else value
