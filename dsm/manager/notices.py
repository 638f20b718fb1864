"""Notices that a stranger can cause as often as he likes: the first few as they are, then counts.

Owns the rate.  Each kind of notice has a budget of its own, so that garbage at one door does not hide
what happens at another.
"""

from __future__ import annotations

from collections.abc import Callable

#: Notices of a kind that are written out before they are counted, and how long a count gathers.
FIRST = 5
GATHER_S = 5.0


class _Kind:
    """Notices of one kind since the last quiet period."""

    __slots__ = ("latest", "said", "unsaid")

    def __init__(self) -> None:
        self.said = 0
        self.unsaid = 0
        self.latest = ""


class Notices:
    """A log for what may come in floods.

    Parameters
    ----------
    log
        Takes one line.
    after
        ``after(seconds, callback)`` calls back once, later.
    """

    def __init__(
        self, log: Callable[[str], None], after: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._log = log
        self._after = after
        self._kinds: dict[str, _Kind] = {}

    def say(self, kind: str, line: str) -> None:
        """Write `line`, or count it when there were several of its kind lately."""
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = _Kind()
            self._after(GATHER_S, lambda: self._sum_up(kind))
        if state.said < FIRST:
            state.said += 1
            self._log(line)
        else:
            state.unsaid += 1
            state.latest = line

    def _sum_up(self, kind: str) -> None:
        state = self._kinds[kind]
        if not state.unsaid:
            del self._kinds[kind]
            return
        self._log(f"{kind}: {state.unsaid} more in {GATHER_S:g} s, the latest: {state.latest}")
        state.unsaid = 0
        self._after(GATHER_S, lambda: self._sum_up(kind))
