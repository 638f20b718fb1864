"""Spans: runs of an extent cut into objects of one size class.

Owns which objects of a span are out: a map with one byte an object, and a list of those that came back.
"""

from __future__ import annotations

from dsm.errors import InternalError
from dsm.memory.classes import SIZES


class Span:
    """`count` objects of class `cls`, the first at address `start`; all of them here at first."""

    __slots__ = ("cls", "count", "end", "fresh", "live", "out", "size", "spare", "start")

    def __init__(self, cls: int, start: int, count: int) -> None:
        self.cls = cls
        self.size = SIZES[cls]
        self.count = count
        self.start = start
        self.end = start + count * self.size
        #: By object: 1 when it is out.
        self.out = bytearray(count)
        #: Objects that are out.
        self.live = 0
        #: Addresses of objects that were out and came back.
        self.spare: list[int] = []
        #: Address of the first object that never was out, and behind which none was.
        self.fresh = start

    def take(self, count: int) -> list[int]:
        """Return up to `count` objects, which are out from now on."""
        spare, size, start, out = self.spare, self.size, self.start, self.out
        taken = spare[: -count - 1 : -1]
        if taken:
            del spare[-len(taken) :]
            for address in taken:
                out[(address - start) // size] = 1
        lacking = count - len(taken)
        if lacking and self.fresh < self.end:
            stop = min(self.end, self.fresh + lacking * size)
            first, last = (self.fresh - start) // size, (stop - start) // size
            out[first:last] = b"\1" * (last - first)
            taken.extend(range(self.fresh, stop, size))
            self.fresh = stop
        self.live += len(taken)
        return taken

    def check(self) -> None:
        """Verify every invariant; `InternalError` names the first that does not hold."""
        if self.live != sum(self.out) or self.out.count(0) + self.out.count(1) != self.count:
            raise InternalError(
                f"span at {self.start:#x}: {self.live} objects are counted, the map has {sum(self.out)}"
            )
        if not self.start <= self.fresh <= self.end or (self.fresh - self.start) % self.size:
            raise InternalError(f"span at {self.start:#x}: its untouched part begins at {self.fresh:#x}")
        if self.live + len(self.spare) + (self.end - self.fresh) // self.size != self.count:
            raise InternalError(f"span at {self.start:#x}: objects were lost")
        if len(set(self.spare)) != len(self.spare):
            raise InternalError(f"span at {self.start:#x}: an object is here twice")
        for address in self.spare:
            index, rest = divmod(address - self.start, self.size)
            if rest or not self.start <= address < self.fresh or self.out[index]:
                raise InternalError(f"span at {self.start:#x}: {address:#x} is here and out")
