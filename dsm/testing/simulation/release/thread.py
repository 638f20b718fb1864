"""A thread under release consistency: it reads and writes words of bytes, and synchronizes.

Owns its place in the real happens-before: a call that releases takes its clock along, and what a reply
brought is joined when the thread goes on.
"""

from __future__ import annotations

from typing import Any

from dsm.errors import Status
from dsm.testing.simulation.program import UNIQUE, Access, Call, Touch
from dsm.testing.simulation.release.calls import TimedCall, releases
from dsm.testing.simulation.release.clocks import Clock, Clocks
from dsm.testing.simulation.release.truth import ReleaseTruth
from dsm.testing.simulation.sync import SyncThread
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.worker import WorkerRegion
from dsm.testing.simulation.world import Violation

_OK, _OWNER_DIED, _BROKEN = int(Status.OK), int(Status.OWNER_DIED), int(Status.BROKEN)


class Word(Touch):
    """One instruction that reads or writes words of `width` bytes; an access names the first byte."""

    __slots__ = ("width",)

    def __init__(
        self, region: int, accesses: tuple[Access, ...], width: int = 1, ip: int = 1, think: int = 0
    ) -> None:
        super().__init__(region, accesses, ip, think)
        self.width = width


class ReleaseThread(SyncThread):
    """One thread."""

    clocks: Clocks

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        #: What its call takes along, and what a reply brought.
        self.clock: Clock = ()
        self.acquired: Clock | None = None

    def _call(self, call: Call, region: WorkerRegion) -> None:
        if isinstance(call, TimedCall) and releases(call):
            self.clock = self.clocks.release(self.number)
        super()._call(call, region)

    def _answered(self, call: Call) -> None:
        if self.acquired is not None:
            self.clocks.acquire(self.number, self.acquired)
            self.acquired = None
        if isinstance(call, TimedCall):
            if self.status == _OWNER_DIED:
                self.status = _OK
            if self.status == _BROKEN:  # the others may be in another phase: nothing more may be touched
                self.status = _OK
                self.position = len(self.program) - 1
            elif self.status == _OK and self.result < call.least:
                self.position += call.skip
        super()._answered(call)

    def _access(self, operation: Touch, region: WorkerRegion) -> None:
        truth = region.home.truth
        if not isinstance(truth, ReleaseTruth):
            super()._access(operation, region)
            return
        assert isinstance(operation, Word)
        for page, offset, value in operation.accesses:
            if value is None:
                self._read(truth, region, page, range(offset, offset + operation.width))
            else:
                number = self._write(truth, region, page, range(offset, offset + operation.width))
                if value != UNIQUE:
                    truth.labels[number] = value

    def _read(self, truth: ReleaseTruth, region: WorkerRegion, page: int, word: range) -> None:
        frame = region.home.frames[page]
        self.world.note(What.READ, self.node.number, self.number, region.number, page, frame[word.start])
        for offset in word:
            truth.found(self, page, offset, frame[offset])
        self.register = frame[word.start]
        if self.observed is not None:
            self.observed.append(self.register)

    def _write(self, truth: ReleaseTruth, region: WorkerRegion, page: int, word: range) -> int:
        home = region.home
        if home.truth.gone >> self.node.number & 1 == 0 and region.protection[page] != 3:
            raise Violation(f"{self.describe()} writes without access")
        number = self.world.fresh_value()
        what = f"{number} at {word.start}+{len(word)}"
        self.world.note(What.WRITE, self.node.number, self.number, region.number, page, what)
        for offset in word:
            truth.wrote(self, page, offset, number)
            home.frames[page][offset] = number
        return number
