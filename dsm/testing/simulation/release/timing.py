"""How long things take in a simulation of release consistency: sometimes one sort of thing is much slower."""

from __future__ import annotations

from random import Random

from dsm.testing.simulation.driver_mutants import SlowPages
from dsm.testing.simulation.world import Timing


class SlowSteps(Timing):
    """Steps that mostly are short, and now and then last while others do much."""

    __slots__ = ()

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.step_high, self.step_tail, self.tail_chance = 300, 100_000, 0.2
        self.link_low, self.link_high, self.link_tail = 500, 1_000, 10_000
        self.page_high = 1_000


class SlowLinks(Timing):
    """Messages that take longer than everything else."""

    __slots__ = ()

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.step_high, self.tail_chance = 300, 0.0
        self.link_low, self.link_high = 20_000, 200_000


class ReleaseTiming(Timing):
    """Anything is slow, or one sort of thing."""

    __slots__ = ()

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        kind = random.choices((Timing, SlowSteps, SlowLinks, SlowPages), (7, 1, 1, 1))[0]
        drawn = kind(random)
        for name in Timing.__slots__:
            setattr(self, name, getattr(drawn, name))
