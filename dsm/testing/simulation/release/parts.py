"""The classes that a simulation of release consistency is made of."""

from __future__ import annotations

from dataclasses import dataclass

from dsm.testing.simulation.cluster import Parts, Shape
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.release.lending import LendingNode
from dsm.testing.simulation.release.plan import Manners
from dsm.testing.simulation.release.shapes import ReleaseShape
from dsm.testing.simulation.release.thread import ReleaseThread
from dsm.testing.simulation.release.timing import ReleaseTiming
from dsm.testing.simulation.release.truth import ReleaseTruth
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.world import Timing


@dataclass(frozen=True)
class ReleaseParts(Parts):
    """`Parts`, and how programs look."""

    node: type[Node] = LendingNode
    thread: type[Thread] = ReleaseThread
    truth: type[Truth] = ReleaseTruth
    shape: type[Shape] = ReleaseShape
    manners: type[Manners] = Manners
    timing: type[Timing] = ReleaseTiming
