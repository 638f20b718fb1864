"""How numbers, lists and tables are written for people.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def numbers(values: Iterable[int]) -> str:
    """Return numbers, each once, in order, as people enumerate them."""
    return enumerate_words([str(each) for each in sorted(set(values))])


def plural(count: int, one: str, many: str = "") -> str:
    """Return ``1 node`` or ``2 nodes``; `many` where an s will not do."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the rows in columns; nothing when there are none."""
    rows = list(rows)
    if not rows:
        return ""
    lines = [[_printable(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _printable(text: str) -> str:
    """Return a cell without what would move a terminal's cursor: names are whatever a program chose."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
