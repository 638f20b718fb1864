"""What a pool says of itself.

Owns the figures and what follows from them; `dsm.memory.pool` keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Figures of a pool at one moment; all but counts and ratios are bytes.

    ``managed == used + spare + free``.
    """

    #: Extents, and their bytes.
    extents: int
    managed: int
    #: Blocks and objects that are out (those in workers' caches, too), and the bytes that they take.
    blocks: int
    objects: int
    used: int
    #: Bytes asked for by blocks and objects (of an object: all of it; workers count what was asked of them).
    asked: int
    #: Objects in spans that nobody has: of use for their own class only.
    spare: int
    #: What the buddies have, and the largest block that is to be had without another extent.
    free: int
    largest_free: int
    #: Spans, and their bytes.
    spans: int
    span_bytes: int
    #: The most that was used, and managed, at a time.
    peak: int
    peak_managed: int

    @property
    def live(self) -> int:
        """Blocks and objects that are out."""
        return self.blocks + self.objects

    @property
    def internal_fragmentation(self) -> float:
        """The part of what is used that nobody asked for, 0 to 1."""
        return 1 - self.asked / self.used if self.used else 0.0

    @property
    def external_fragmentation(self) -> float:
        """The part of what is free that the largest block does not reach, 0 to 1."""
        return 1 - self.largest_free / self.free if self.free else 0.0
