"""What goes wrong in a simulation: crashes, cut links, stopped processes, drawn from the seed.

Owns the draw.  A part of all seeds has faults; their source of randomness is their own, so that a seed
without them is the same run as ever.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from dsm.testing.simulation.trace import What

if TYPE_CHECKING:
    from dsm.testing.simulation.cluster import Cluster
    from dsm.testing.simulation.node import Node

#: Part of the seeds that have faults.
CHANCE = 0.5


class Faults:
    """Faults of one seed: how often each kind, how long, how fast they are noticed."""

    #: Kinds of faults.
    KINDS = ("crash", "cut", "stop")
    chance = CHANCE
    #: Weights of kinds among which a seed chooses.
    choices: tuple[tuple[float, ...], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 2, 1), (1, 3, 1))

    def __init__(self, seed: int) -> None:
        self.random = random = Random(f"faults of seed {seed}")
        self.active = random.random() < self.chance
        self.weights = random.choice(self.choices)
        #: Nanoseconds: the measure of this seed's faults.
        self.span = random.choice((30_000, 300_000, 2_000_000))
        self.most = random.choice((1, 2, 4))
        #: Calls of `Engine.age` that waits survive (0: they have no deadline), and the time between two.
        self.patience = random.choice((0, 1, 1, 3)) if self.active else 0
        self.age_interval = random.choice((2_000_000, 10_000_000))

    def prepare(self, cluster: Cluster) -> None:
        """Set the times of the coordinator."""
        membership = cluster.membership
        membership.notice = self.random.choice((1, 1, 4)) * self.span
        membership.silence = self.random.choice((1, 4)) * self.span

    def plan(self, cluster: Cluster) -> None:
        """Plan the faults of one round."""
        if not self.active:
            return
        random = self.random
        for _ in range(random.randint(0, self.most)):
            kind = random.choices(self.KINDS, self.weights)[0]
            when = random.randrange(2 * self.span)
            if kind == "crash":
                self._crash(cluster, when)
            elif kind == "cut":
                cluster.world.after(when, self._cut, cluster)
            else:
                cluster.world.after(when, self._stop, cluster)

    def _crash(self, cluster: Cluster, when: int) -> None:
        """Crash at a time, or in the middle of what a manager does."""
        living = cluster.membership.survivors()
        doomed = sum(node.fuse > 0 for node in living)
        if len(living) - doomed < 2 or (len(living) - doomed == 2 and self.random.random() < 0.7):
            return
        victim = self.random.choice(living[1:])
        if self.random.random() < 0.6:
            victim.fuse = self.random.randint(1, 120)
        else:
            cluster.world.after(when, self._crash_now, (cluster, victim))

    def _crash_now(self, argument: tuple[Cluster, Node]) -> None:
        cluster, victim = argument
        if len(cluster.membership.survivors()) > 1:
            victim.crash()

    def _cut(self, cluster: Cluster) -> None:
        """Cut a link: for a short time, or for longer than the coordinator bears."""
        living = cluster.membership.survivors()
        if len(living) < 2:
            return
        a, b = self.random.sample([node.number for node in living], 2)
        silence = cluster.membership.silence
        if self.random.random() < 0.5 or len(living) == 2:
            spans = self.random.randrange(silence), self.random.randrange(silence)
        else:
            spans = silence + self.random.randrange(silence), silence + self.random.randrange(3 * silence)
        cluster.losses.tally["cuts that are declared" if min(spans) >= silence else "cuts that heal"] += 1
        cluster.membership.cut(a, b, spans)

    def _stop(self, cluster: Cluster) -> None:
        """Stop a manager, a worker, or a whole node for long."""
        random = self.random
        node = random.choice(cluster.membership.survivors())
        span = random.randrange(random.choice((10 * self.span, 60_000_000)))
        what = random.choice(("manager", "worker", "node"))
        workers = node.workers if what == "node" else [random.choice(node.workers)] if node.workers else []
        actors: list[Any] = [] if what == "worker" else [node]
        if what != "manager":
            for worker in workers:
                actors += [worker, *worker.threads]
        cluster.world.note(What.STOPPED, node.number, 0, 0, 0, f"its {what} stops for {span / 1000:.0f} µs")
        cluster.losses.tally[f"{what}s stopped"] += 1
        for actor in actors:
            cluster.world.stop(actor, span)


class Calm(Faults):
    """Nothing goes wrong."""

    chance = 0.0


class Stormy(Faults):
    """Something goes wrong in every seed."""

    chance = 1.0
