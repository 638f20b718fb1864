"""How long a node keeps a page that it has just been given, however much others want it.

Owns the answer to one question: until when may this page not be taken away?

* A page that a thread waited for is held until Δ after the thread has mapped it (Mirage: Fleisch and
  Popek, 1989, section 3.2), so that the instruction gets its chance.
* An instruction may need several pages at once (a copy across a border, `rep movs`).  When it loses one
  while it waits for another, it faults on them in turn.  Then it keeps the lower ones while it waits for
  the highest: as with locks that are always taken in ascending order, nobody can wait in a circle, and
  whoever holds a higher page gives it up after Δ.  So some instruction always completes.

Pages of all regions of a node have one order: region, then page.
"""

from __future__ import annotations

from collections.abc import Callable

from dsm.limits import HOLD_NS, HOLD_WAIT_MAX_NS, UNAPPLIED_MAX_NS

#: Pages of an instruction that are remembered.
_PAGES = 4
#: Forget what is old when so many entries have gathered.
_PURGE_AT = 1024
_REGION_SHIFT = 44


def key_of(region: int, page: int) -> int:
    """Return the place of a page in the order of all pages."""
    return region << _REGION_SHIFT | page


class Hold:
    """Hold times of one node's pages."""

    __slots__ = ("_history", "_kept", "_until", "unapplied")

    def __init__(self) -> None:
        #: waiter -> page: granted, but not known to be mapped by the thread yet.
        self.unapplied: dict[int, int] = {}
        #: page -> time until which it is held.
        self._until: dict[int, int] = {}
        #: (worker, instruction) -> pages it faulted on, the latest last.
        self._history: dict[tuple[int, int], list[int]] = {}
        #: waiter -> lower pages of its instruction that are held while it waits.
        self._kept: dict[int, list[int]] = {}

    def fault(self, page: int, waiter: int, worker: int, instruction: int, now: int) -> None:
        """Note that `instruction` faulted on `page`: a second time in turn with others, it keeps those."""
        who = (worker, instruction)
        pages = self._history.get(who)
        if pages is None:
            if len(self._history) >= _PURGE_AT:
                self._history.clear()
            self._history[who] = [page]
            return
        if pages[-1] == page:
            return
        if page in pages:
            pages.remove(page)
            lower = [other for other in pages if other < page]
            if lower:
                self._kept[waiter] = lower
                self._until.update(dict.fromkeys(lower, now + HOLD_WAIT_MAX_NS))
        elif len(pages) == _PAGES:
            del pages[0]
        pages.append(page)

    def granted(self, waiter: int, page: int, now: int) -> None:
        """`waiter` was woken with `page`; it is held while the thread has not mapped it."""
        self.unapplied[waiter] = page
        until = self._until
        until[page] = max(now + UNAPPLIED_MAX_NS, until.get(page, 0))
        if len(until) > _PURGE_AT:
            self._until = {p: t for p, t in until.items() if t > now}

    def applied(self, waiter: int, now: int) -> None:
        """The thread has mapped the page that it was woken with."""
        page = self.unapplied.pop(waiter, None)
        if page is not None:
            self._release(waiter, now + HOLD_NS)
            self._hold_until(page, now + HOLD_NS)

    def ended(self, waiter: int, now: int) -> None:
        """`waiter` waits no more, without its page: what it kept may go."""
        self.unapplied.pop(waiter, None)
        self._release(waiter, now)

    def forget(self, waits: Callable[[int], bool], now: int) -> None:
        """A worker is gone: its threads hold nothing."""
        for waiter in [w for w in {*self.unapplied, *self._kept} if waits(w)]:
            page = self.unapplied.get(waiter)
            if page is not None:
                self._until.pop(page, None)
            self.ended(waiter, now)

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

    def _release(self, waiter: int, time: int) -> None:
        if self._kept:
            for page in self._kept.pop(waiter, ()):
                self._hold_until(page, time)

    def _hold_until(self, page: int, time: int) -> None:
        """Hold a page until `time`, unless an instruction keeps it for longer."""
        if not self._kept or not any(page in pages for pages in self._kept.values()):
            self._until[page] = time
