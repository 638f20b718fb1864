"""What release consistency asks of the driver: twins, diffs, and the ends of releases and acquires.

Owns the twins of all regions, and what is to happen when a release or acquire of this node is done.  Diffs
are made and stored by the shim, in one call for many pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsm.coherence.messages import (
    Acquired,
    Apply,
    Diff,
    Forward,
    Kind,
    LowerRuns,
    Message,
    Released,
    Twin,
)
from dsm.coherence.release.runs import count_of
from dsm.manager.frames import Frames
from dsm.manager.twins import Twins
from dsm.vector_time import Time
from dsm.wire.header import pack_coherence

if TYPE_CHECKING:
    from dsm.manager.coherence import Coherence

_DIFF = int(Kind.DIFF)


class ReleaseDriver:
    """Effects of `release` on one node.

    Parameters
    ----------
    coherence
        The driver of the engine.
    """

    def __init__(self, coherence: Coherence) -> None:
        self._coherence = coherence
        self._twins: dict[int, Twins] = {}
        self._tickets = 0
        #: What to call when a release, or an acquire, is done; by its ticket.
        self._releases: dict[int, Callable[[Time], None]] = {}
        self._acquires: dict[int, Callable[[], None]] = {}
        coherence.effects.update(
            {
                LowerRuns: self._lower_runs,
                Twin: self._twin,
                Diff: self._diff,
                Apply: self._apply,
                Forward: self._forward,
                Released: self._released,
                Acquired: self._acquired,
            }
        )

    # -- what synchronization asks -------------------------------------------------------------------------

    def release(self, then: Callable[[Time], None]) -> None:
        """Bring what this node has written to its homes; `then(time)`, perhaps at once."""
        self._tickets += 1
        self._releases[self._tickets] = then
        self._coherence.engine.fence.release(self._tickets, time.monotonic_ns())
        self._coherence.perform()

    def acquire(self, target: Time, then: Callable[[], None]) -> None:
        """Let this node see what happened before `target`; `then()`, perhaps at once."""
        self._tickets += 1
        self._acquires[self._tickets] = then
        self._coherence.engine.fence.acquire(self._tickets, target, time.monotonic_ns())
        self._coherence.perform()

    # -- what others send ----------------------------------------------------------------------------------

    def arrived(self, message: Message, payload: memoryview, frames: Frames) -> None:
        """A DIFF is here as a whole.

        Raises
        ------
        WireError
            Its payload is malformed.
        """
        runs = frames.named(payload)
        self._coherence.engine.diff_arrived(message, runs, payload, time.monotonic_ns())
        self._coherence.perform()

    # -- regions -------------------------------------------------------------------------------------------

    def drop_region(self, number: int) -> None:
        """A region is gone."""
        twins = self._twins.pop(number, None)
        if twins is not None:
            twins.close()

    def _twins_of(self, region: int) -> Twins:
        twins = self._twins.get(region)
        if twins is None:
            twins = self._twins[region] = Twins(self._coherence.frames[region])
        return twins

    # -- effects -------------------------------------------------------------------------------------------

    def _lower_runs(self, effect: LowerRuns) -> None:
        self._coherence.pager.lower_runs(effect.region, effect.runs, effect.level, effect.token)

    def _twin(self, effect: Twin) -> None:
        self._twins_of(effect.region).make(effect.page, effect.count)

    def _diff(self, effect: Diff) -> None:
        coherence = self._coherence
        frames = coherence.frames[effect.region]
        payloads, changed = self._twins_of(effect.region).diff(effect.runs, effect.keep)
        node = coherence.engine.node
        parts = 0
        for payload in payloads if effect.node != node else ():
            runs = frames.named(payload)
            parts += count_of(runs)
            low, high = int(runs[0, 0]), int(runs[-1].sum())
            message = Message(_DIFF, effect.region, low, high - low, effect.request, node)
            self._send(effect.node, message, payload)
        coherence.engine.diffed(effect.region, effect.request, changed, parts, time.monotonic_ns())

    def _apply(self, effect: Apply) -> None:
        assert isinstance(effect.payload, memoryview)
        self._coherence.frames[effect.region].apply(effect.payload, effect.runs)

    def _forward(self, effect: Forward) -> None:
        assert isinstance(effect.payload, memoryview)
        message = effect.message
        payload = self._coherence.frames[message.region].forwarded(effect.payload, effect.runs)
        self._send(effect.node, message, memoryview(payload))

    def _send(self, node: int, message: Message, payload: memoryview) -> None:
        link = self._coherence.links.get(node)
        if link is not None:
            link.send(pack_coherence(message, self._coherence.epoch, len(payload)), payload)
            link.flush()

    def _released(self, effect: Released) -> None:
        self._releases.pop(effect.ticket)(effect.time)

    def _acquired(self, effect: Acquired) -> None:
        self._acquires.pop(effect.ticket)()
