"""Vector times: of each node, up to which of its intervals everything has happened before.

Owns their arithmetic.  Coherence counts the intervals; to synchronization, which carries such times from
one thread to the next, they are numbers that only grow.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

#: At position n, how many intervals of node n; nodes beyond its end have none.
Time: TypeAlias = tuple[int, ...]


def join(a: Time, b: Time) -> Time:
    """Return the least time that is not before either."""
    return tuple(itertools.starmap(max, itertools.zip_longest(a, b, fillvalue=0)))


def covers(a: Time, b: Time) -> bool:
    """Whether everything that has happened before `b` has happened before `a`."""
    return len(a) >= len(b) and all(x >= y for x, y in zip(a, b, strict=False))


def at(time: Time, node: int) -> int:
    """Return how many intervals of a node have happened before `time`."""
    return time[node] if node < len(time) else 0
