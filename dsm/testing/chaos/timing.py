"""How long each wait of a worker may take.

Pure.  Time in which the worker itself, or the manager of its node, was stopped does not count: nobody can
answer it then.  What waits for other workers without an end of its own may take as long as they are kept up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsm.testing.chaos.journal import Kind
from dsm.testing.chaos.plan import PAGE_TIMEOUT_S, JobPlan

#: Seconds that everything may take on a busy machine besides what it waits for.
MARGIN_S = 2.0
#: Seconds within which the workers of a killed manager know.
NODE_LOST_S = 2.0
#: Waits in a row that one step may consist of: its words lie in two pages, and may be taken away in between.
_PAGES = {Kind.READ: 2, Kind.LOOK: 2, Kind.WRITE: 3, Kind.PREFETCH: 2, Kind.PIN: 2}
#: Seconds for what depends on every other worker's progress.
_TOGETHER_S = 10.0
_START_S = 30.0


@dataclass(frozen=True)
class Disturbance:
    """Something that kept processes from working for a while; a cut has two nodes."""

    begin_ns: int
    end_ns: int
    nodes: tuple[int, ...]
    #: The worker that was stopped; -1 when it was a manager, or a link.
    rank: int = -1

    def overlap_s(self, begin_ns: int, end_ns: int) -> float:
        """Return the seconds of an interval that this takes."""
        return max(0, min(self.end_ns, end_ns) - max(self.begin_ns, begin_ns)) / 1e9

    @property
    def is_cut(self) -> bool:
        """Whether a link was cut."""
        return len(self.nodes) == 2


def own_s(plan: JobPlan, rank: int, all_: Iterable[Disturbance], begin_ns: int, end_ns: int) -> float:
    """Return the seconds of an interval in which a worker, or its manager, was stopped."""
    return sum(
        each.overlap_s(begin_ns, end_ns)
        for each in all_
        if not each.is_cut and (each.rank == rank or (each.rank < 0 and each.nodes == (plan.node_of(rank),)))
    )


def others_s(all_: Iterable[Disturbance], begin_ns: int, end_ns: int) -> float:
    """Return how long any disturbance kept somebody up.

    After a cut the kernel sends again when its timer fires, which has doubled with every try.
    """
    total = 0.0
    for each in all_:
        back_off_ns = each.end_ns - each.begin_ns if each.is_cut else 0
        total += max(0, min(each.end_ns + back_off_ns, end_ns) - max(each.begin_ns, begin_ns)) / 1e9
    return total


def bound_s(kind: int, words: tuple[int, int, int], others: float) -> float:
    """Return how long a step may take, in seconds; `others` as `others_s` says."""
    if kind in _PAGES:
        return _PAGES[Kind(kind)] * PAGE_TIMEOUT_S + MARGIN_S
    if kind == Kind.ACQUIRE and words[0] >= 0:
        return words[0] / 1000 + MARGIN_S
    if kind in (Kind.ACQUIRE, Kind.BARRIER):
        return others + _TOGETHER_S
    if kind == Kind.ATTACH:
        return _START_S
    return MARGIN_S
