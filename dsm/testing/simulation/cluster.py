"""One simulation: a cluster built from a seed, run in rounds, checked at every rest.

Owns the shape of a run.  A round gives every thread a program and runs until nothing is planned;
then all programs must have finished, no transient may be left, and the directories must agree with
the nodes.  `Parts` names the classes a simulation is built of, so that a mutant is a `Parts` with one
of them replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from random import Random

from dsm.coherence.engine import Engine
from dsm.coherence.sequential import SequentialRegion
from dsm.coherence.states import State
from dsm.coherence.table import LOST
from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.faults import Faults
from dsm.testing.simulation.losses import Losses
from dsm.testing.simulation.membership import Membership
from dsm.testing.simulation.network import Network
from dsm.testing.simulation.node import Node
from dsm.testing.simulation.program import Operation, Style, Touch, Writer
from dsm.testing.simulation.thread import Thread
from dsm.testing.simulation.trace import What
from dsm.testing.simulation.truth import Truth
from dsm.testing.simulation.worker import Worker
from dsm.testing.simulation.world import Timing, Violation, World
from dsm.types import Region, RegionOptions

#: Taken rows of the transition table: (event, state before) -> times.
Coverage = dict[tuple[str, int], int]


@dataclass
class Shape:
    """How large a simulated cluster is."""

    nodes: int
    workers: int
    threads: int
    regions: list[Region] = field(default_factory=list)
    #: Operations in a thread's program, in one round.
    steps: int = 40

    @classmethod
    def draw(cls, random: Random) -> Shape:
        """Draw the shape of a cluster: mostly small, now and then large."""
        nodes = random.choices((2, 3, 4, 5, 8, 16, 64), (30, 30, 20, 8, 4, 2, 0.5))[0]
        workers = random.randint(2, 4) if nodes <= 4 else 2 if nodes <= 16 else 1
        threads = random.choice((1, 1, 2)) if nodes <= 8 else 1
        shape = cls(nodes, workers, threads)
        for number in range(1, random.choice((1, 1, 2, 3)) + 1):
            shape.regions.append(draw_region(random, number, nodes))
        shape.steps = max(2, random.choice((200, 400)) // (nodes * workers * threads))
        return shape


@dataclass(frozen=True)
class Parts:
    """Classes that a simulation is made of."""

    engine: type[Engine] = Engine
    node: type[Node] = Node
    worker: type[Worker] = Worker
    thread: type[Thread] = Thread
    network: type[Network] = Network
    truth: type[Truth] = Truth
    timing: type[Timing] = Timing
    style: type[Style] = Style
    shape: type[Shape] = Shape
    faults: type[Faults] = Faults


def draw_region(random: Random, number: int, nodes: int) -> Region:
    """Draw a region: its pages, their size and where their directory entries are."""
    page_size = random.choice((4096, 4096, 65536, 262144, 1 << 20, 1 << 21))
    pages = random.choice((1, 2, 5, 12, 40)) if page_size > 4096 else random.choice((2, 8, 40, 300, 600))
    home: str | int = random.choice(("first-touch", "block", "cyclic", random.randrange(nodes)))
    members = tuple(range(nodes))
    if random.random() < 0.2:
        members = tuple(sorted(random.sample(members, random.randint(1, nodes))))
        home = random.choice(("first-touch", "block", "cyclic", random.choice(members)))
    fill = random.choice((b"", bytes([7])))
    options = RegionOptions(nbytes=pages * page_size, page_size=page_size, home=home, fill=fill)
    return Region(number, options, ADDRESS_LOW + (number << 36), members)


def unfinished(region: SequentialRegion) -> str:
    """Say what is still under way in an engine's region; empty when nothing is."""
    requester, holder = region.requester, region.holder
    return words_for(
        {
            "requests": requester.requests,
            "waiting": requester.waiting,
            "prefetch and pin": region.bulks.under_way,
            "transactions": region.directory.busy,
            "demands": holder.demands,
            "Lower": holder.lowering,
            "pins": region.pins,
        }
    )


def words_for(found: Mapping[str, Sized]) -> str:
    """Name what is not empty."""
    return ", ".join(f"{name}: {what!r}" for name, what in found.items() if len(what))


class Cluster:
    """Nodes, workers and threads of one simulation."""

    def __init__(
        self, seed: int, shape: Shape | None = None, parts: Parts | None = None, *, keep: int = 400
    ) -> None:
        self.parts = parts or Parts()
        self.world = World(seed, timing=self.parts.timing, keep=keep)
        self.shape = shape or self.parts.shape.draw(self.world.random)
        self.network = self.parts.network(self.world)
        self.losses = self.make_losses()
        self.membership = Membership(self.world, self.network, self.losses)
        self.faults = self.parts.faults(seed)
        self.faults.prepare(self)
        self.nodes: list[Node] = []
        self.threads: list[Thread] = []
        self.truths: dict[int, Truth] = {}
        self.dropped: set[int] = set()
        #: Filled by `watch`.
        self.coverage: Coverage = {}
        for number in range(self.shape.nodes):
            self._add_node(number)
        for region in self.shape.regions:
            self.add_region(region)

    def _add_node(self, number: int) -> None:
        engine = self.parts.engine(number, self.faults.patience)
        node = self.parts.node(self.world, self.network, number, engine)
        node.losses = self.losses
        node.patience = self.faults.patience
        node.age_interval = self.faults.age_interval
        self.losses.engines[number] = engine
        self.nodes.append(node)
        self.network.nodes.append(node)
        for worker_number in range(self.shape.workers):
            worker = self.parts.worker(self.world, node, worker_number)
            node.workers.append(worker)
            for _ in range(self.shape.threads):
                thread = self.parts.thread(worker, len(self.threads))
                worker.threads.append(thread)
                self.threads.append(thread)

    def add_region(self, region: Region) -> None:
        """Create a region on every node, before anybody uses it."""
        fill = region.options.fill[0] if region.options.fill else 0
        truth = self.truths[region.region] = self.make_truth(region, fill)
        self.losses.add_region(region.region, truth)
        for node in self.membership.survivors():
            self._map(region, node)

    def make_losses(self) -> Losses:
        """Return what may be lost with nodes."""
        return Losses()

    def make_truth(self, region: Region, fill: int) -> Truth:
        """Return what a region's memory really holds."""
        return self.parts.truth(region.region, region.pages, fill)

    def draw_region(self, random: Random, number: int) -> Region:
        """Draw one more region."""
        return draw_region(random, number, len(self.nodes))

    def _map(self, region: Region, node: Node) -> None:
        fill = region.options.fill[0] if region.options.fill else 0
        node.add_region(region, self.truths[region.region], fill)
        node.engine.regions[region.region].table.taken = self.coverage

    # -- rounds -----------------------------------------------------------------------------------

    def run_random(self, min_events: int, max_events: int) -> None:
        """Run rounds of random programs until `min_events` have happened."""
        random = self.world.random
        pages = {region.region: region.pages for region in self.shape.regions}
        number = 0
        while self.world.events < min_events:
            number += 1
            self.world.note(What.ROUND, -1, number)
            if self.membership.declared:
                self._grow()
                pages = {region.region: region.pages for region in self.shape.regions}
            styles = {
                n: self.parts.style(random, count) for n, count in pages.items() if n not in self.dropped
            }
            writer = Writer(random, styles, pages)
            for thread in self.threads:
                thread.start(writer.program(self.shape.steps), random.randrange(5_000))
            if len(styles) > 1 and random.random() < 0.2:
                self._destroy(random.choice(list(styles)))
            if random.random() < 0.1:
                self._kill(random)
            self.faults.plan(self)
            self.world.run(max_events)
            self.check_rest()
            self.losses.rests()
            self.threads = [thread for thread in self.threads if not thread.worker.dead]

    def _grow(self) -> None:
        """After a loss: now and then a node joins, or a region is made, also one with dead members."""
        random = self.faults.random
        if len(self.nodes) < 8 and random.random() < 0.2:
            self._add_node(len(self.nodes))
            node = self.nodes[-1]
            for lost in self.membership.declared:
                node.lost(lost)
            for region in self.shape.regions:
                if region.region not in self.dropped:
                    self._map(region, node)
        if random.random() < 0.5:
            region = self.draw_region(random, len(self.shape.regions) + 1)
            self.shape.regions.append(region)
            self.add_region(region)

    def _kill(self, random: Random) -> None:
        """One worker dies in the middle of its program."""
        node = random.choice(self.membership.survivors())
        if len(node.workers) > 1:
            self.world.after(random.randrange(2_000_000), random.choice(node.workers).die)

    def run_programs(
        self, programs: dict[int, list[Operation]], max_events: int, *, spread: int = 1, check: bool = True
    ) -> None:
        """Run given programs, by number of thread, to the end; they start within `spread` nanoseconds."""
        for number, program in programs.items():
            self.threads[number].start(program, self.world.random.randrange(spread))
        self.world.run(max_events)
        if check:
            self.check_rest()

    def _destroy(self, number: int) -> None:
        """Every node learns at its own time that a region is gone."""
        random = self.world.random
        self.dropped.add(number)
        when = random.randrange(3_000_000)
        for node in self.membership.survivors():
            self.world.after(when + random.randrange(300_000), node.drop_region, number)

    # -- checks at rest ---------------------------------------------------------------------------

    def check_rest(self) -> None:
        """Nothing is planned any more: everything must be finished and agree."""
        stuck = [thread for thread in self.threads if not thread.finished]
        if stuck:
            raise Violation("stuck: nothing is planned, but\n" + "\n".join(self._explain(t) for t in stuck))
        for node in self.membership.survivors():
            if node.effects or node.inbox or node.lowering or node.slots:
                raise Violation(
                    f"node {node.number} rests with effects {list(node.effects)}, inbox {list(node.inbox)}, "
                    f"unfinished Lower {node.lowering}, slots {list(node.slots)}"
                )
            for number, left in self.unfinished(node):
                raise Violation(f"node {node.number} region {number} rests with {left}")
        for region in self.shape.regions:
            if region.region not in self.dropped:
                self.check_agreement(region)

    def unfinished(self, node: Node) -> Iterator[tuple[int, str]]:
        """Say what is still under way in the regions of a node."""
        for number, region in node.engine.sequential.items():
            left = unfinished(region)
            if left:
                yield number, left

    def _explain(self, thread: Thread) -> str:
        lines = [thread.describe()]
        operation = thread.program[thread.position]
        page = operation.needs[0][0] if isinstance(operation, Touch) else operation.page
        lines += [node.engine.story(operation.region, page) + " (dead)" * node.dead for node in self.nodes]
        return "\n".join(lines)

    def check_agreement(self, region: Region) -> None:
        """Directories, states, wanted tables and frames must tell the same story."""
        number = region.region
        truth = self.truths[number]
        nodes = self.membership.survivors()
        states = [bytes(node.engine.regions[number].table.state) for node in nodes]
        entries = self._entries(region)
        for page in range(region.pages):
            entry = entries[page]
            holders = 0
            exclusive = -1
            for node, state in zip(nodes, states, strict=True):
                here = state[page]
                wanted = node.regions[number].wanted[page] & 3
                if wanted != {State.INVALID: 0, State.SHARED: 1, State.EXCLUSIVE: 3}.get(State(here), -1):
                    raise Violation(
                        f"r{number} p{page}: node {node.number} is {State(here).name}, wanted {wanted}"
                    )
                if here == State.INVALID:
                    continue
                holders |= 1 << node.number
                if here == State.EXCLUSIVE:
                    exclusive = node.number
                if node.regions[number].frames[page] != truth.pages[page]:
                    raise Violation(f"r{number} p{page}: node {node.number} holds a stale frame")
            if exclusive >= 0 and holders != 1 << exclusive:
                raise Violation(f"r{number} p{page}: EXCLUSIVE on {exclusive}, but held by {holders:#x}")
            if entry is None:
                continue
            owner, copyset = entry
            if owner >= LOST - 1:
                owner = -1  # lost: nobody has it, or ever will
            if exclusive >= 0 and owner != exclusive:
                raise Violation(
                    f"r{number} p{page}: EXCLUSIVE on {exclusive}, but the directory says {owner}"
                )
            if holders != copyset or (owner >= 0 and not copyset >> owner & 1):
                raise Violation(
                    f"r{number} p{page}: directory says owner {owner}, copyset {copyset:#x}, "
                    f"but held by {holders:#x}"
                )

    def _entries(self, region: Region) -> list[tuple[int, int] | None]:
        """Return owner (-1: none) and copyset of every page, None where the directory node is dead."""
        entries: list[tuple[int, int] | None] = []
        placement = self.nodes[0].engine.regions[region.region].placement
        for page in range(region.pages):
            directory = placement.directory(page)
            if self.losses.is_gone(directory):
                entries.append(None)
                continue
            table = self.nodes[directory].engine.regions[region.region].table
            entries.append((table.owner[page] - 1, table.copyset[page]))
        return entries
