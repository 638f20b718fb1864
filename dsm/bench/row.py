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
    messages, bytes : int or None
        What all nodes together sent to each other, where that is counted.
    note : str
        What the figures need to be understood; that a peer is missing, say.
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
    messages: int | None = None
    bytes: int | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None without one.

        The target 1, as fast as the floor, is met by a ratio inside the floor's spread.
        """
        if self.target is None:
            return None
        if self.ratio is None:
            return self.value <= self.target
        slack = self.spread or 0.0
        return self.ratio <= self.target or (self.target == 1.0 and self.ratio <= 1 + slack)


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
    """Return the rows as text; columns and notes that no row has are left out."""
    head = ["row", "placement", "value", "floor", "unit", "ratio", "target", "spread", "messages", "MiB", ""]
    lines = [head]
    for r in rows:
        reached = r.reached
        lines.append(
            [
                r.row,
                r.placement,
                f"{r.value:.4g}",
                "" if r.floor is None else f"{r.floor:.4g}",
                r.unit,
                "" if r.ratio is None else f"{r.ratio:.2f}",
                "" if r.target is None else f"{r.target:g}",
                "" if r.spread is None else f"{r.spread:.0%}",
                "" if r.messages is None else str(r.messages),
                "" if r.bytes is None else f"{r.bytes / 2**20:.2f}",
                r.note if reached is None else ("reached" if reached else "NOT reached"),
            ]
        )
    shown = [i for i in range(len(head)) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in shown}
    text = ["  ".join(line[i].ljust(widths[i]) for i in shown).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])
