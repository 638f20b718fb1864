"""Jobs and their events, drawn from a seed.

Pure: the same seed gives the same plan, whatever happens when it is carried out.  An event whose target has
gone meanwhile (a cut link may end either side) is skipped and said so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from dsm.limits import PEER_SILENCE_S

#: DSM_PAGE_TIMEOUT of every chaos job, in seconds.
PAGE_TIMEOUT_S = 1.0
#: Seconds of a cut that nobody may notice but by waiting; of one that pages do not survive waiting for; of
#: one that makes the coordinator declare a side dead.
SHORT_CUT_S = (0.05, 0.5)
MEDIUM_CUT_S = (1.5, 4.0)
LONG_CUT_S = float(PEER_SILENCE_S + 10)
#: Seconds of a stop, shorter or longer than the deadline of pages.
SHORT_STOP_S = (0.02, 0.6)
LONG_STOP_S = (1.3, 2.5)


class Action(Enum):
    """What happens."""

    KILL_WORKER = "SIGKILL worker"
    KILL_MANAGER = "SIGKILL manager"
    STOP_WORKER = "SIGSTOP worker"
    STOP_MANAGER = "SIGSTOP manager"
    CUT = "cut"


@dataclass(frozen=True)
class Event:
    """One event; `at_s` counts from the moment when all workers have attached."""

    at_s: float
    action: Action
    node: int
    #: Rank of the worker.
    rank: int = -1
    #: The other side of a cut.
    other: int = -1
    #: Until SIGCONT, or until the link heals.
    for_s: float = 0.0

    @property
    def until_s(self) -> float:
        """When its effect is taken back."""
        return self.at_s + self.for_s

    def __str__(self) -> str:
        lasting = f" for {self.for_s:.2f} s" if self.for_s else ""
        if self.action == Action.CUT:
            return f"cut nodes {self.node} and {self.other}{lasting}"
        if self.rank >= 0:
            return f"{self.action.value} {self.rank} (node {self.node}){lasting}"
        return f"{self.action.value} of node {self.node}{lasting}"


@dataclass(frozen=True)
class JobPlan:
    """One job."""

    seed: str
    nodes: int
    #: Workers of each node.
    workers: int
    home: str | int
    page_size: int
    #: Whether its nodes live in network namespaces.
    networked: bool
    events: tuple[Event, ...] = ()
    #: When all living workers are told to meet.
    barriers_s: tuple[float, ...] = ()

    def node_of(self, rank: int) -> int:
        """Return the node of a rank: they are dealt in blocks."""
        return rank // self.workers

    def ranks_of(self, node: int) -> range:
        """Return the ranks of a node."""
        return range(node * self.workers, (node + 1) * self.workers)


@dataclass
class _Drawer:
    """Draws the events of one job and remembers who lives."""

    rng: random.Random
    plan: JobPlan
    living: set[int] = field(default_factory=set)
    nodes: set[int] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    #: Until when somebody is stopped or cut: the same target is not taken twice at once.
    busy: dict[tuple[str, int, int], float] = field(default_factory=dict)
    over: bool = False

    def _free(self, key: tuple[str, int, int], at: float, until: float) -> bool:
        if self.busy.get(key, -1.0) >= at:
            return False
        self.busy[key] = until
        return True

    def draw(self, at: float) -> bool:
        """Add one event at that time; False when this draw found no target."""
        weights = {
            Action.KILL_WORKER: 15, Action.KILL_MANAGER: 12, Action.STOP_WORKER: 25, Action.STOP_MANAGER: 22,
            Action.CUT: 26 if self.plan.networked else 0,
        }  # fmt: skip
        (action,) = self.rng.choices(list(weights), list(weights.values()))
        if action == Action.CUT:
            return self._cut(at)
        if action in (Action.KILL_WORKER, Action.STOP_WORKER):
            return self._kill_worker(at) if action == Action.KILL_WORKER else self._stop_worker(at)
        return self._kill_manager(at) if action == Action.KILL_MANAGER else self._stop_manager(at)

    def _kill_worker(self, at: float) -> bool:
        if len(self.living) < 2:
            return False
        rank = self.rng.choice(sorted(self.living))
        self.living.discard(rank)
        self.events.append(Event(at, Action.KILL_WORKER, self.plan.node_of(rank), rank))
        return True

    def _kill_manager(self, at: float) -> bool:
        # The first node's end is the cluster's: mostly the job is to go on.
        others = sorted(self.nodes - {0})
        node = self.rng.choice(others) if others and self.rng.random() < 0.93 else 0
        if node == 0 and self.rng.random() < 0.7:
            return False
        if node == 0:
            self.over = True
        elif not self.living - set(self.plan.ranks_of(node)):
            return False
        self.nodes.discard(node)
        self.living -= set(self.plan.ranks_of(node))
        self.events.append(Event(at, Action.KILL_MANAGER, node))
        return True

    def _stop_s(self) -> float:
        return round(self.rng.uniform(*(SHORT_STOP_S if self.rng.random() < 0.6 else LONG_STOP_S)), 2)

    def _stop_worker(self, at: float) -> bool:
        for_s = self._stop_s()
        rank = self.rng.choice(sorted(self.living))
        if not self._free(("worker", rank, 0), at, at + for_s):
            return False
        self.events.append(Event(at, Action.STOP_WORKER, self.plan.node_of(rank), rank, for_s=for_s))
        return True

    def _stop_manager(self, at: float) -> bool:
        for_s = self._stop_s()
        node = self.rng.choice(sorted(self.nodes))
        if not self._free(("manager", node, 0), at, at + for_s):
            return False
        self.events.append(Event(at, Action.STOP_MANAGER, node, for_s=for_s))
        return True

    def _cut(self, at: float) -> bool:
        if len(self.nodes) < 2:
            return False
        node, other = sorted(self.rng.sample(sorted(self.nodes), 2))
        kind = self.rng.random()
        if kind < 0.6:
            for_s = round(self.rng.uniform(*SHORT_CUT_S), 2)
        elif kind < 0.95:
            for_s = round(self.rng.uniform(*MEDIUM_CUT_S), 2)
        else:  # one side will be declared dead: which one is not ours to say
            for_s, self.over = LONG_CUT_S, True
        # One link at a time: isolating two pairs of ports of a switch would cut all four from each other.
        if not self._free(("cut", 0, 0), at, at + for_s):
            self.over = False
            return False
        self.events.append(Event(at, Action.CUT, node, other=other, for_s=for_s))
        return True


def draw_job(seed: str, most_events: int, networked: bool) -> JobPlan:
    """Return the job of that seed, with 1 to `most_events` events."""
    rng = random.Random(seed)
    nodes = rng.randint(2, 4)
    home: str | int = rng.choice(("first-touch", "cyclic", "block", ""))
    if not home:
        home = rng.randrange(nodes)
    plan = JobPlan(
        seed,
        nodes,
        rng.randint(2 if nodes == 2 else 1, 3),
        home,
        rng.choice([4096, 4096, 16384, 65536]),
        networked,
    )
    drawer = _Drawer(rng, plan, set(range(nodes * plan.workers)), set(range(nodes)))
    wanted = min(most_events, rng.randint(5, 10))
    at = 0.3
    # A job in which one worker is left has nothing more to tell.
    while len(drawer.events) < wanted and not drawer.over and (len(drawer.living) > 1 or not drawer.events):
        if drawer.draw(round(at, 2)):
            at += rng.uniform(0.15, 0.9)
    end = drawer.events[-1].at_s
    barriers = tuple(sorted(round(rng.uniform(0.1, end + 0.3), 2) for _ in range(rng.randint(1, 3))))
    return JobPlan(
        plan.seed, nodes, plan.workers, plan.home, plan.page_size, networked, tuple(drawer.events), barriers
    )


def draw_jobs(seed: int, events: int, networked: bool) -> list[JobPlan]:
    """Return jobs with `events` events together."""
    jobs: list[JobPlan] = []
    left = events
    while left > 0:
        jobs.append(draw_job(f"{seed}/{len(jobs)}", left, networked))
        left -= len(jobs[-1].events)
    return jobs
