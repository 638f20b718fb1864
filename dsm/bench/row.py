"""What a benchmark row is, and how rounds become one.

Owns the row's fields (they are the JSON objects of ``dsm bench --json``), and the statistics: a row's
value and floor are medians over rounds, its ratio the median of the rounds' ratios, because the two
of a round were measured right after each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One line of the table.

    Attributes
    ----------
    row : str
        What was measured.
    value, floor : float
        In `unit`; floor is what this machine does at best without dsm.
    ratio : float
        value / floor (for `hit`, `scan`: time over time).
    target : float or None
        Largest ratio (or value, where there is no floor) to reach.
    spread : float
        (Largest - smallest) / median of the floor's rounds.
    placement : str
        ``one core``: every process on one processor; ``unpinned``: where the system puts them.
    """

    row: str
    value: float
    unit: str
    floor: float | None
    ratio: float | None
    target: float | None
    spread: float | None
    pager: str = "signals"
    fabric: str = "tcp loopback"
    placement: str = "unpinned"

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without one.

        A target that lies inside the floor's spread is met when the ratio lies inside it.
        """
        if self.target is None:
            return None
        if self.ratio is None:
            return self.value <= self.target
        slack = self.spread or 0.0
        return self.ratio <= self.target or (self.target <= 1 + slack and self.ratio <= 1 + slack)


def combine(
    name: str,
    unit: str,
    values: Sequence[float],
    floors: Sequence[float],
    *,
    target: float | None = None,
    placement: str = "unpinned",
    fabric: str = "tcp loopback",
) -> Row:
    """Return the row of some rounds, value and floor of a round at the same index."""
    floor = statistics.median(floors)
    ratio = statistics.median(v / f for v, f in zip(values, floors, strict=True))
    spread = (max(floors) - min(floors)) / floor
    return Row(
        name,
        statistics.median(values),
        unit,
        floor,
        ratio,
        target,
        spread,
        placement=placement,
        fabric=fabric,
    )


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    head = ("row", "placement", "value", "floor", "unit", "ratio", "target", "spread", "")
    lines = [head]
    for r in rows:
        reached = r.reached
        lines.append(
            (
                r.row,
                r.placement,
                f"{r.value:.4g}",
                "" if r.floor is None else f"{r.floor:.4g}",
                r.unit,
                "" if r.ratio is None else f"{r.ratio:.2f}",
                "" if r.target is None else f"{r.target:g}",
                "" if r.spread is None else f"{r.spread:.0%}",
                "" if reached is None else ("reached" if reached else "NOT reached"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
