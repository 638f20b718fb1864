"""One simulation of bounded staleness: a cluster built from a seed, run in rounds, checked at every rest.

Owns the shape of its regions, times in which leases end again and again, and what must hold at rest.
"""

from __future__ import annotations

from random import Random

from dsm.coherence.bounded.region import BoundedRegion
from dsm.coherence.states import State
from dsm.coherence.table import LOST
from dsm.limits import READ_AGAIN_NS
from dsm.testing.simulation.bounded.node import BoundedNode
from dsm.testing.simulation.bounded.truth import BoundedTruth
from dsm.testing.simulation.bounded.worker import BoundedThread, BoundedWorker
from dsm.testing.simulation.cluster import Cluster, Parts, Shape, draw_region
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.world import Timing, Violation
from dsm.types import Region

#: Nanoseconds by which values may be old: now and then less than an answer takes, or more than a round.
_STALENESS = (400_000, 1_000_000, 4_000_000, 20_000_000)
_AGAIN = (100_000, 500_000, 3_000_000, READ_AGAIN_NS)
_LEVELS = {State.EXCLUSIVE: (3,), State.SHARED: (1,), State.INVALID: (0, 1)}


class BoundedTiming(Timing):
    """Steps that are short against the guard of every lease: what is later is promised to nobody."""

    __slots__ = ()

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.step_high = min(self.step_high, 2_000)
        self.step_tail = 6_000
        self.link_low = min(self.link_low, 5_000)
        self.link_high = min(self.link_high, 20_000)
        self.link_tail = min(self.link_tail, 1_000_000)
        self.page_high = min(self.page_high, 200_000)


class BoundedShape(Shape):
    """How large a simulated cluster is."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        """Draw the shape of a cluster."""
        shape = super().draw(random)
        shape.regions = [bounded(random, region) for region in shape.regions]
        return shape


BOUNDED_PARTS = Parts(
    node=BoundedNode,
    worker=BoundedWorker,
    thread=BoundedThread,
    truth=BoundedTruth,
    timing=BoundedTiming,
    shape=BoundedShape,
)


def bounded(random: Random, region: Region) -> Region:
    """Return the region as one of bounded staleness."""
    staleness = random.choice(_STALENESS)
    options = region.options
    options = type(options)(
        nbytes=options.nbytes,
        page_size=options.page_size,
        home=options.home,
        fill=options.fill,
        consistency="bounded",
        max_staleness_ns=staleness,
    )
    return Region(region.region, options, region.address, region.members)


class BoundedCluster(Cluster):
    """Nodes, workers and threads of one simulation."""

    def __init__(
        self, seed: int, shape: Shape | None = None, parts: Parts | None = None, *, keep: int = 400
    ) -> None:
        #: Nanoseconds after which requests to read are sent again.
        self._again_ns = Random(f"bounded {seed}").choice(_AGAIN)
        super().__init__(seed, shape, parts or BOUNDED_PARTS, keep=keep)

    def _map(self, region: Region, node: Node) -> None:
        super()._map(region, node)
        made = node.engine.regions[region.region]
        assert isinstance(made, BoundedRegion)
        made.requester.again_ns = self._again_ns

    def draw_region(self, random: Random, number: int) -> Region:
        """Draw one more region."""
        return bounded(random, draw_region(random, number, len(self.nodes)))

    def make_truth(self, region: Region, fill: int) -> Truth:
        """Return what a region's memory may hold."""
        truth = super().make_truth(region, fill)
        assert isinstance(truth, BoundedTruth)
        truth.world = self.world
        truth.staleness = region.options.max_staleness_ns
        return truth

    def check_agreement(self, region: Region) -> None:
        """One owner a page, whom its directory knows; and copies that count for nothing."""
        number = region.region
        entries = self._entries(region)
        for page in range(region.pages):
            holder = -1
            for node in self.membership.survivors():
                table = node.engine.regions[number].table
                wanted = node.regions[number].wanted[page] & 3
                state = State(table.state[page])
                if wanted not in _LEVELS.get(state, ()):
                    raise Violation(f"r{number} p{page}: node {node.number} is {state.name}, wanted {wanted}")
                if state != State.EXCLUSIVE:
                    continue
                if holder >= 0:
                    raise Violation(f"r{number} p{page}: nodes {holder}, {node.number} both have the token")
                holder = node.number
                if node.regions[number].frames[page] != self.truths[number].pages[page]:
                    raise Violation(f"r{number} p{page}: node {node.number} owns a stale frame")
            entry = entries[page]
            if entry is None:
                continue
            owner, copyset = entry
            owner = -1 if owner >= LOST - 1 else owner
            if owner != holder or copyset != (1 << owner if owner >= 0 else 0):
                raise Violation(
                    f"r{number} p{page}: directory says owner {owner}, copyset {copyset:#x}; "
                    f"node {holder} has the token"
                )
