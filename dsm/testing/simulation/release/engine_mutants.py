"""Deliberate bugs of the engine of release consistency, put into its roles.

Owns the classes; `mutants` names them and says what is wrong.
"""

from __future__ import annotations

import numpy as np
from msgspec import structs

from dsm.coherence.messages import Apply, Flag, Message, Raise, Runs
from dsm.coherence.release.acquirer import Acquirer
from dsm.coherence.release.fence import Fence, _Wanted
from dsm.coherence.release.home import Home
from dsm.coherence.release.intervals import Log
from dsm.coherence.release.requester import ReleaseRequester
from dsm.coherence.release.runs import Pages, count_of, pages_of, runs_of
from dsm.coherence.release.writer import Writer
from dsm.coherence.states import State
from dsm.vector_time import Time, join

_EXCLUSIVE = int(State.EXCLUSIVE)
_HOME = int(Flag.HOME)

# -- writer ---------------------------------------------------------------------------------------------


class DropsNotice(Writer):
    """Leaves the first run of an interval out of its notices."""

    __slots__ = ()

    def end_round(self) -> Runs:
        return super().end_round()[1:]


class DropsEarlyFlushed(Writer):
    """Leaves out what was flushed before the release."""

    __slots__ = ()

    def diffed(self, request: int, changed: Runs, parts: int) -> None:
        before = list(self._changed)
        super().diffed(request, changed, parts)
        self._changed = before


class DropsOwnWrites(Writer):
    """Leaves out what the home itself has written."""

    __slots__ = ()

    def end_round(self) -> Runs:
        pages = pages_of(super().end_round())
        return runs_of(pages[~self.region.placement.mine(pages)])


class DiffsEarly(Writer):
    """Compares before the workers have lost write access."""

    __slots__ = ()

    def begin_round(self) -> None:
        super().begin_round()
        for token in list(self.lowering):
            self.lowered(token)


class RaisesFirst(Writer):
    """Lets workers write before the twin is made."""

    __slots__ = ()

    def open(self, page: int, count: int) -> None:
        region = self.region
        region.effects.append(Raise(region.number, page, count, 3))
        super().open(page, count)


class DoesNotAwaitHomes(Writer):
    """Takes a diff for stored when it is sent."""

    __slots__ = ()

    @property
    def is_busy(self) -> bool:
        return bool(self.lowering)


# -- acquirer -------------------------------------------------------------------------------------------


class AcquiresEarly(Acquirer):
    """Does not wait until workers have given their copies up."""

    __slots__ = ()

    @property
    def is_busy(self) -> bool:
        return False


class ThrowsDirtyAway(Acquirer):
    """Gives up dirty pages like clean ones."""

    __slots__ = ()

    def lowered(self, token: int) -> None:
        clean, dirty = self.lowering[token]
        self.lowering[token] = np.sort(np.concatenate((clean, dirty))), dirty[:0]
        super().lowered(token)


class IgnoresPins(Acquirer):
    """Gives up pinned pages."""

    __slots__ = ()

    def _give_up(self, pages: Pages) -> None:
        pins, self.region.pins = self.region.pins, []
        super()._give_up(pages)
        self.region.pins = pins


class DropsUsed(Acquirer):
    """Tells the home that it has no copies of pages that it goes on reading."""

    __slots__ = ()

    def _give_up(self, pages: Pages) -> None:
        super()._give_up(pages)
        here = self.region.table.states == int(State.SHARED)
        others = np.flatnonzero(here & self.listed)
        if len(others):
            self._drop(others[:1])


# -- requester ------------------------------------------------------------------------------------------


class InstallsVoided(ReleaseRequester):
    """Installs what left its home before the write that a notice names."""

    __slots__ = ()

    def void_pages(self, pages: Pages) -> None:
        pass


class ForgetsCopyset(ReleaseRequester):
    """Becomes the home of a page without knowing who has copies."""

    __slots__ = ()

    def install(self, message: Message) -> None:
        if message.flags & _HOME:
            message = structs.replace(message, value=0)
        super().install(message)


# -- home -----------------------------------------------------------------------------------------------


class SendsUntracked(Home):
    """Sends a private page while its workers go on writing it, and nothing tracks that."""

    __slots__ = ()

    def _serve_run(self, message: Message, page: int, count: int) -> None:
        if self.region.table.state[page] == _EXCLUSIVE and not message.flags & _HOME:
            self._answer(message, page, count, False)
        else:
            super()._serve_run(message, page, count)


class ForgetsReader(Home):
    """Does not put a reader into the copyset."""

    __slots__ = ()

    def _answer(self, message: Message, page: int, count: int, fresh: bool) -> None:
        before = self.region.table.copysets[page : page + count].copy()
        super()._answer(message, page, count, fresh)
        self.region.table.copysets[page : page + count] = before


class GivesWhileWritten(Home):
    """Gives the home of a page away while its own workers write it."""

    __slots__ = ()

    def _serve_run(self, message: Message, page: int, count: int) -> None:
        if message.flags & _HOME and self.region.table.state[page] == _EXCLUSIVE:
            self._give(message, page, count, False)
        else:
            super()._serve_run(message, page, count)


class DropsForwarded(Home):
    """Acknowledges a diff for a page whose home has moved on, and does not pass it on."""

    __slots__ = ()

    def _forward(self, home: int, message: Message, runs: Runs, payload: object) -> None:
        self._acknowledge(message, count_of(runs))


class AcknowledgesForwarded(Home):
    """Acknowledges a diff that it passes on, before the home has it."""

    __slots__ = ()

    def _forward(self, home: int, message: Message, runs: Runs, payload: object) -> None:
        super()._forward(home, message, runs, payload)
        self._acknowledge(message, count_of(runs))
        self._forwarded.clear()

    def diffed(self, message: Message) -> bool:
        return super().diffed(message) or message.request not in self.region.writer.flushes


class StoresWhatIsNotMine(Home):
    """Stores a diff in the copy of a page whose home has moved on."""

    __slots__ = ()

    def patch(self, message: Message, runs: Runs, payload: object) -> None:
        states = self.region.table.states
        if all(states[page] == int(State.SHARED) for page in pages_of(runs)):
            self.region.effects.append(Apply(self.region.number, runs, payload))
            self._acknowledge(message, count_of(runs))
        else:
            super().patch(message, runs, payload)


# -- fence ----------------------------------------------------------------------------------------------


class JoinsRound(Fence):
    """Lets a release share the round that is under way: its writes may have come too late for it."""

    def release(self, ticket: int, now: int) -> None:
        if self._current and self._current[0].time is None:
            self._engine.now = now
            self._current.append(_Wanted(ticket, None))
        else:
            super().release(ticket, now)


class AppliesEarly(Fence):
    """Says what it has acquired in the time of a release that is asked for meanwhile."""

    def acquire(self, ticket: int, time: Time, now: int) -> None:
        self.time = join(self.time, time)
        super().acquire(ticket, time, now)


class BelievesTrimmed(Log):
    """Takes a log that has forgotten intervals for complete."""

    def is_complete(self, have: Time, upto: Time) -> bool:
        return True
