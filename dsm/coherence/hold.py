"""The minimum hold time Δ of a page (Mirage: Fleisch and Popek, 1989, section 3.2).

Owns the answer to one question: until when may this page not be taken away?  A page that a thread
waited for is held until Δ after the thread has mapped it.  When one instruction needs two pages and
loses the first while it waits for the second, it faults on them in turn; then Δ doubles, and it
grows at a different pace on each node, so that two such instructions cannot exchange pages for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from dsm.limits import HOLD_MAX_NS, HOLD_NS, MAX_NODES, UNAPPLIED_MAX_NS

#: Forget expired entries when so many have gathered.
_PURGE_AT = 1024


class Hold:
    """Hold times of the pages of one region on one node."""

    __slots__ = ("_base", "_history", "_until", "unapplied")

    def __init__(self, node: int) -> None:
        #: waiter -> (page, hold in ns): granted, but not known to be mapped by the thread yet.
        self.unapplied: dict[int, tuple[int, int]] = {}
        #: page -> time until which it is held.
        self._until: dict[int, int] = {}
        #: (worker, instruction) -> [last page, the page before, doublings].
        self._history: dict[tuple[int, int], list[int]] = {}
        self._base = HOLD_NS + HOLD_NS * (node * 37 % MAX_NODES) // MAX_NODES

    def fault(self, page: int, worker: int, instruction: int) -> int:
        """Note that `instruction` faulted on `page`; return the hold time that its grant deserves."""
        key = (worker, instruction)
        past = self._history.get(key)
        if past is None:
            if len(self._history) >= _PURGE_AT:
                self._history.clear()
            self._history[key] = [page, -1, 0]
            return self._base
        last, before, doublings = past
        if page == last:
            pass
        elif page == before:
            past[0], past[1] = page, last
            past[2] = doublings = doublings + 1
        else:
            past[0], past[1], past[2] = page, last, 0
            return self._base
        return min(self._base << min(doublings, 20), HOLD_MAX_NS)

    def granted(self, waiter: int, page: int, hold_ns: int, now: int) -> None:
        """`waiter` was woken with `page`; it is held while the thread has not mapped it."""
        self.unapplied[waiter] = (page, hold_ns)
        self._until[page] = now + UNAPPLIED_MAX_NS
        if len(self._until) > _PURGE_AT:
            self._until = {p: t for p, t in self._until.items() if t > now}

    def applied(self, waiter: int, now: int) -> None:
        """The thread has mapped the page that it was woken with."""
        entry = self.unapplied.pop(waiter, None)
        if entry is not None:
            page, hold_ns = entry
            self._until[page] = now + hold_ns

    def forget(self, waits: Callable[[int], bool]) -> None:
        """A worker is gone: its threads hold nothing."""
        for waiter in [w for w in self.unapplied if waits(w)]:
            page, _ = self.unapplied.pop(waiter)
            self._until.pop(page, None)

    def until(self, page: int, count: int, now: int) -> int:
        """Return the time until which some page of the range is held; 0 when none is."""
        held = self._until
        if not held:
            return 0
        if count == 1:
            time = held.get(page, 0)
        else:
            end = page + count
            time = max((t for p, t in held.items() if page <= p < end), default=0)
        return time if time > now else 0
