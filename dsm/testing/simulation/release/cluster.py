"""One simulation of release consistency: a cluster built from a seed, run in rounds, checked at every rest.

Owns the shape of a run: programs of one plan a round, and at its end a barrier of all threads after which
every node looks at everything.  Regions of `sequential` may be among the others: they share the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from dsm.coherence.release.intervals import Log
from dsm.coherence.release.writer import Writer
from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.losses import Losses
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.release.calls import TimedCall
from dsm.testing.simulation.release.clocks import Clocks
from dsm.testing.simulation.release.deaths import LivingTruth
from dsm.testing.simulation.release.losses import ReleaseLosses
from dsm.testing.simulation.release.node import TimedNode
from dsm.testing.simulation.release.parts import ReleaseParts
from dsm.testing.simulation.release.plan import Plan
from dsm.testing.simulation.release.program import FENCE, Author, look_everywhere
from dsm.testing.simulation.release.rest import check_fence, check_region, unfinished
from dsm.testing.simulation.release.restless import Restless
from dsm.testing.simulation.release.thread import ReleaseThread
from dsm.testing.simulation.release.truth import ReleaseTruth
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.worker import Worker
from dsm.testing.simulation.world import Violation
from dsm.types import Region, SyncObject
from dsm.wire.calls import Op

#: Numbers of locks, flags and barriers (each round has barriers of its own).
_LOCKS, _FLAGS, _BARRIERS = 10, 20, 100
RELEASE_PARTS = ReleaseParts()


class ReleaseCluster(Cluster):
    """Nodes, workers and threads of one simulation."""

    def __init__(
        self, seed: int, shape: Shape | None = None, parts: Parts | None = None, *, keep: int = 400
    ) -> None:
        parts = parts or RELEASE_PARTS
        assert isinstance(parts, ReleaseParts)
        random = Random(f"release {seed}")
        self.clocks = Clocks()
        self.sync_truth = LivingTruth(64)
        self.objects: list[SyncObject] = []
        self._barriers = _BARRIERS
        #: Homes move at every chance.
        self.restless = random.random() < 0.3
        self.log_bounds = random.choice(((2, 10), (5, 1000), (1000, 40), (1000, 100_000)))
        super().__init__(seed, shape or parts.shape.draw(random), parts, keep=keep)
        self.plans = random
        self.manners = parts.manners.draw(random)
        self._raised: dict[int, int] = {}
        self._plan: Plan | None = None
        self._make_objects(random)

    def _add_node(self, number: int) -> None:
        super()._add_node(number)
        node = self.nodes[number]
        assert isinstance(node, TimedNode)
        node.clocks = self.clocks
        node.sync_truth = self.sync_truth
        node.engine.fence.log = Log(*self.log_bounds)
        for worker in node.workers:
            for thread in worker.threads:
                assert isinstance(thread, ReleaseThread)
                thread.clocks = self.clocks
                self.clocks.epoch(thread.number)
        for described in self.objects:
            node.add_object(described)

    def make_losses(self) -> Losses:
        """Return what may be lost with nodes."""
        losses = ReleaseLosses()
        losses.watchers.append(self._node_gone)
        return losses

    def _node_gone(self, number: int) -> None:
        """A node crashed, or was declared dead: its threads hold nothing."""
        self._died([thread for thread in self.threads if thread.node.number == number])

    def _died(self, threads: list[Thread]) -> None:
        self.sync_truth.dies(threads)
        for truth in self.truths.values():
            if isinstance(truth, ReleaseTruth):
                truth.orderly = False

    def make_truth(self, region: Region, fill: int) -> Truth:
        """Return what a region's memory may hold."""
        if region.options.consistency == "sequential":
            return Truth(region.region, region.pages, fill)
        truth = super().make_truth(region, fill)
        assert isinstance(truth, ReleaseTruth)
        truth.clocks = self.clocks
        return truth

    def _map(self, region: Region, node: Node) -> None:
        super()._map(region, node)
        joined = node.engine.fence.regions.get(region.region)
        if self.restless and joined is not None and type(joined.writer) is Writer:
            joined.writer.__class__ = Restless

    # -- objects ----------------------------------------------------------------------------------

    def _make_objects(self, random: Random) -> None:
        self.add_object(FENCE, "atomic", 0, random)
        for lock in range(_LOCKS, _LOCKS + random.choice((1, 1, 2, 3))):
            self.add_object(lock, "lock", 0, random)
        for flag in range(_FLAGS, _FLAGS + random.choice((1, 2, 4))):
            self.add_object(flag, "atomic", 0, random)

    def add_object(self, number: int, kind: str, value: int, random: Random) -> None:
        """Make an object known everywhere; its home is drawn."""
        # The coordinator never dies, and with it no lock.
        home = 0 if self.faults.active else random.choice(self.nodes).number
        described = SyncObject(number, kind, f"{kind} {number}", home, value)
        self.objects.append(described)
        for node in self.membership.survivors():
            assert isinstance(node, TimedNode)
            node.add_object(described)

    def _of_kind(self, low: int, high: int) -> list[int]:
        return [each.object for each in self.objects if low <= each.object < high]

    # -- rounds -----------------------------------------------------------------------------------

    def run_random(self, min_events: int, max_events: int) -> None:
        """Run rounds of random programs until `min_events` have happened."""
        while self.world.events < min_events:
            self.world.note(What.ROUND, -1, self._barriers)
            self._round(max_events)

    def _round(self, max_events: int) -> None:
        random = self.plans
        regions = {region.region: region.pages for region in self.shape.regions}
        self.threads = [thread for thread in self.threads if self._lives(thread)]
        numbers = [thread.number for thread in self.threads]
        for node in self.membership.survivors():
            assert isinstance(node, TimedNode)
            node.begin_job()
        self._barriers += 1
        self.add_object(self._barriers, "barrier", len(numbers), random)
        if self._plan is None or self.manners.barriers:
            self._plan = Plan(
                random,
                self.manners,
                regions,
                numbers,
                self._of_kind(_LOCKS, _FLAGS),
                self._of_kind(_FLAGS, _BARRIERS),
                random.choice((1, 2, 4, 8)) if self.manners.barriers else 1,
            )
        plan = self._plan
        for number in regions:
            truth = self.truths[number]
            assert isinstance(truth, ReleaseTruth)
            truth.racy = plan.racy(number)
        looks = self.manners.barriers or random.random() < 0.3
        nodes = self.membership.survivors()
        lookers = {node.workers[0].threads[0] for node in nodes if node.workers}
        for thread in self.threads:
            program = Author(plan, thread.number, self._raised, self._barriers).write(self.shape.steps)
            if looks:
                program.append(TimedCall(Op.BARRIER_WAIT, self._barriers, thread.number))
                if thread in lookers:
                    program += look_everywhere(random, regions)
            thread.start(program, random.randrange(5_000))
        for flag in plan.flags:
            self._raised[flag] = self._raised.get(flag, 0) + 1
        if random.random() < 0.1:
            self._kill_worker(random)
        self.faults.plan(self)
        deaths = len(self.sync_truth.dead)
        self.world.run(max_events)
        self.check_rest()
        self.losses.rests()
        if looks and len(self.sync_truth.dead) == deaths:
            for region in self.shape.regions:
                check_region(self, region, clean=True)

    def _lives(self, thread: Thread) -> bool:
        return not thread.worker.dead and thread.node in self.membership.survivors()

    def _kill_worker(self, random: Random) -> None:
        """One worker dies in the middle of its program."""
        node = random.choice(self.membership.survivors())
        if len(node.workers) > 1:
            worker = random.choice(node.workers)
            self.world.after(random.randrange(2_000_000), self._die, worker)

    def _die(self, worker: Worker) -> None:
        if not worker.dead and not worker.node.dead:
            self._died(worker.threads)
            worker.die()

    # -- checks at rest ---------------------------------------------------------------------------

    def check_rest(self) -> None:
        """Nothing is planned any more: everything must be finished and agree."""
        super().check_rest()
        for node in self.membership.survivors():
            assert isinstance(node, TimedNode)
            if not node.rests:
                raise Violation(
                    f"node {node.number} rests with releases {node.releasing}, acquires {node.acquiring}, "
                    f"calls {node.queues}"
                )
            check_fence(node, self.log_bounds)

    def unfinished(self, node: Node) -> Iterator[tuple[int, str]]:
        """Say what is still under way in the regions of a node."""
        yield from super().unfinished(node)
        for number, region in node.engine.fence.regions.items():
            left = unfinished(region)
            if left:
                yield number, left

    def check_agreement(self, region: Region) -> None:
        """Homes, states, wanted tables, twins and frames must tell the same story."""
        if region.options.consistency == "sequential":
            super().check_agreement(region)
        else:
            check_region(self, region, clean=False)
