"""Deliberate bugs of the manager and the shim under release consistency, put into their models.

Owns the classes; `mutants` names them and says what is wrong.
"""

from __future__ import annotations

from collections import deque
from random import Random

from dsm.coherence.messages import Apply, Raise, Twin
from dsm.testing.simulation.release.diffs import of_runs
from dsm.testing.simulation.release.frames import Byte, LiveRegion
from dsm.testing.simulation.release.node import Pending, Stamp, TimedNode, TimedReply
from dsm.testing.simulation.release.plan import Manners
from dsm.wire.calls import Op

_WORD = 8


class TwinsLate(TimedNode):
    """Makes the twin after the grant."""

    def collect(self) -> None:
        super().collect()
        effects = self.effects
        for index in range(len(effects) - 1):
            if type(effects[index]) is Twin and type(effects[index + 1]) is Raise:
                effects[index], effects[index + 1] = effects[index + 1], effects[index]


class LooksTwice(TimedNode):
    """Takes a second snapshot of a frame for its new twin."""

    def new_twin(self, home: LiveRegion, page: int, copy: list[int]) -> list[int]:
        return list(home.frames[page])


class SendsWholePages(TimedNode):
    """Sends bytes that have not changed."""

    def changed_bytes(self, home: LiveRegion, page: int, copy: list[int], twin: list[int]) -> list[Byte]:
        return [(page, offset, byte) for offset, byte in enumerate(copy)] if copy != twin else []


class SendsWords(TimedNode):
    """Sends whole words of which one byte has changed."""

    def changed_bytes(self, home: LiveRegion, page: int, copy: list[int], twin: list[int]) -> list[Byte]:
        words = {offset // _WORD for _, offset, _ in super().changed_bytes(home, page, copy, twin)}
        return [(page, offset, byte) for offset, byte in enumerate(copy) if offset // _WORD in words]


class MergesWords(TimedNode):
    """Reads, modifies and writes words where bytes change."""

    def begin_apply(self, effect: Apply) -> None:
        home = self.frames_of(effect.region, effect)
        changes = of_runs(self._payload(effect.payload), effect.runs)
        words = sorted({(page, offset // _WORD) for page, offset, _ in changes})
        self._merged: list[Byte] = [
            (page, offset, home.frames[page][offset])
            for page, word in words
            for offset in range(word * _WORD, (word + 1) * _WORD)
        ]

    def finish_apply(self, effect: Apply) -> None:
        self.store_bytes(effect, self._merged)
        self.store_bytes(effect, of_runs(self._payload(effect.payload), effect.runs))


class ForgetsTimes(TimedNode):
    """Does not join the time of a call into its object's."""

    def joins(self, number: int, stamp: Stamp) -> None:
        pass


class ForgetsLockTimes(TimedNode):
    """Replaces the time of an object by that of the last call."""

    def joins(self, number: int, stamp: Stamp) -> None:
        self.times._times.pop(number, None)
        super().joins(number, stamp)


class ReleasesUnflushed(TimedNode):
    """Sends the release of a lock without waiting for `Released`."""

    def _begin(self, queue: deque[Pending]) -> None:
        if queue and queue[0].call.kind == Op.LOCK_RELEASE:
            self._send(queue.popleft(), self.engine.fence.time)
        super()._begin(queue)


class WakesUnacquired(TimedNode):
    """Wakes a thread without waiting for `Acquired`."""

    def answered(self, sender: int, answer: TimedReply) -> None:
        thread = self.slots.get(answer.reply.ticket)
        super().answered(sender, answer)
        for reply in list(self.acquiring.values()):
            if reply is answer.reply and thread is not None and thread.waiting:
                self._replied(reply)

    def do_acquired(self, effect: object) -> None:
        self.acquiring.pop(effect.ticket, None)  # type: ignore[attr-defined]


class Rehoming(Manners):
    """Programs that write and ask for homes."""

    @classmethod
    def draw(cls, random: Random) -> Manners:
        manners = super().draw(random)
        manners.calls = (0.0, 0.0, 0.0, 0.3)
        manners.write_chance = 0.7
        manners.weights = (2, 1, 2, 0, 0)
        return manners


class Crowded(Manners):
    """Programs whose threads write bytes side by side, while others release."""

    @classmethod
    def draw(cls, random: Random) -> Manners:
        manners = super().draw(random)
        manners.calls = (0.0, 0.0, 0.0, 0.0)
        manners.write_chance = 0.5
        manners.clustered = False
        manners.weights = (2, 4, 0, 0, 0)
        manners.think = 0
        return manners


class Pinned(Manners):
    """Programs that write what they have pinned, while others release."""

    @classmethod
    def draw(cls, random: Random) -> Manners:
        manners = super().draw(random)
        manners.calls = (0.0, 0.4, 0.0, 0.0)
        manners.write_chance = 0.95
        manners.weights = (2, 3, 2, 0, 0)
        return manners
