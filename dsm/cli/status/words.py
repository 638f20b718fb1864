"""How numbers and lists are written for people.  Pure."""

from __future__ import annotations

from collections.abc import Sequence


def seconds(value: float) -> str:
    """Return a time as people write it."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def enumerate_words(words: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def plural(count: int, one: str, many: str = "") -> str:
    """Return ``1 node`` or ``2 nodes``; `many` where an s will not do."""
    return f"{count} {one if count == 1 else many or one + 's'}"
