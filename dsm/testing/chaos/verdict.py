"""What the journals of a job must show.

Pure.  Each check is a function from the evidence to sentences about what is wrong:

* `check_ends`: every process ended as its events say, nobody else;
* `check_causes`: every error had its cause, and no wait ended with one that had none;
* `check_times`: every wait ended in time;
* `check_values`: each word that anybody saw was being written before, or is the first one, and no worker
  saw a counter go back;
* `check_locks`: one holder at a time, and `OwnerDiedError` exactly after a holder's death;
* `check_cells`: under its lock a cell is whole, and never older than what an earlier holder wrote;
* `check_barriers`: nobody passed before all had come.
"""

from __future__ import annotations

import itertools
import signal
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dsm.limits import PEER_SILENCE_S
from dsm.testing.chaos import cells
from dsm.testing.chaos.cells import Value
from dsm.testing.chaos.journal import NODE_LOST_STATUS, Kind, Outcome, Record
from dsm.testing.chaos.plan import JobPlan
from dsm.testing.chaos.timing import MARGIN_S, NODE_LOST_S, Disturbance, bound_s, others_s, own_s

#: What one check says at most.
_MOST = 5
#: What a holder did within this time before its end may not have left its node.
_LATE_NS = 1_000_000_000
_S = 1_000_000_000
#: A cut that lasts longer than this may make the coordinator declare a side dead; than that, it must.
_MAY_FENCE_NS, _MUST_FENCE_NS = (PEER_SILENCE_S - 5) * _S, (PEER_SILENCE_S + 5) * _S


@dataclass
class Evidence:
    """What is known of a job when it is over."""

    plan: JobPlan
    journals: list[list[Record]] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    #: By node and by rank: when we killed it.
    killed_nodes: dict[int, int] = field(default_factory=dict)
    killed_workers: dict[int, int] = field(default_factory=dict)
    #: By node: when its manager was seen to have ended, before we asked for it.
    ended_nodes: dict[int, int] = field(default_factory=dict)
    #: By rank: when it was seen to have ended, and its status.
    ended_workers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def cuts(self) -> list[Disturbance]:
        """Return the cuts."""
        return [each for each in self.disturbances if each.is_cut]

    def fencing_cuts(self) -> list[Disturbance]:
        """Return the cuts after which one side may have been declared dead."""
        return [cut for cut in self.cuts() if cut.end_ns - cut.begin_ns > _MAY_FENCE_NS]

    def may_end(self, node: int) -> bool:
        """Whether a node may end without being killed: the first one did, or it was cut off for too long."""
        return 0 in self.ended_nodes or any(node in cut.nodes for cut in self.fencing_cuts())

    def died_ns(self, rank: int) -> int | None:
        """Return when a worker died, or began to die with its node; None when it did neither."""
        times = [self.killed_workers.get(rank), self.killed_nodes.get(self.plan.node_of(rank))]
        if not any(times):
            times = [self.ended_nodes.get(self.plan.node_of(rank))]
        return min((time for time in times if time is not None), default=None)


class Step(NamedTuple):
    """A step of a worker; `end_ns` is None when its end was never written down."""

    rank: int
    kind: int
    outcome: int
    which: int
    begin_ns: int
    end_ns: int | None
    #: What was to be written, or what the step was told.
    told: Value
    #: What was read.
    seen: Value


class Section(NamedTuple):
    """One thread's time with a lock."""

    rank: int
    group: int
    acquired_ns: int
    owner_died: bool
    #: When it began to release; None when it never did.
    release_ns: int | None


def steps_of(rank: int, records: Iterable[Record]) -> Iterator[Step]:
    """Join the records of beginnings and ends."""
    begun: Record | None = None
    for record in records:
        words = (record.a, record.b, record.c)
        if record.kind == Kind.ABANDON:
            yield Step(
                rank, record.kind, record.outcome, record.which, record.time_ns, record.time_ns, words, words
            )
        elif record.outcome == Outcome.BEGIN:
            begun = record
        else:
            assert begun is not None and begun.kind == record.kind
            told = (begun.a, begun.b, begun.c)
            yield Step(
                rank, begun.kind, record.outcome, begun.which, begun.time_ns, record.time_ns, told, words
            )
            begun = None
    if begun is not None:
        told = (begun.a, begun.b, begun.c)
        yield Step(rank, begun.kind, Outcome.BEGIN, begun.which, begun.time_ns, None, told, (0, 0, 0))


def sections_of(steps: Iterable[Step]) -> Iterator[Section]:
    """Return one worker's times with locks."""
    held: Step | None = None
    for step in steps:
        if step.kind == Kind.ACQUIRE and step.outcome in (Outcome.OK, Outcome.OWNER_DIED):
            held = step
        elif step.kind == Kind.RELEASE and held is not None:
            yield _section(held, step.begin_ns)
            held = None
    if held is not None:
        yield _section(held, None)


def _section(step: Step, release_ns: int | None) -> Section:
    assert step.end_ns is not None
    return Section(step.rank, step.which, step.end_ns, step.outcome == Outcome.OWNER_DIED, release_ns)


def judge(evidence: Evidence) -> list[str]:
    """Return what is wrong, or nothing."""
    steps = [list(steps_of(rank, records)) for rank, records in enumerate(evidence.journals)]
    problems: list[str] = []
    for check in (
        check_ends,
        check_causes,
        check_times,
        check_values,
        check_locks,
        check_cells,
        check_barriers,
    ):
        found = list(check(evidence, steps))
        problems += found[:_MOST]
        if len(found) > _MOST:
            problems.append(f"{check.__name__}: {len(found) - _MOST} more of these")
    return problems


def check_ends(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """Who ended, and how."""
    plan = evidence.plan
    for node in evidence.ended_nodes:
        if node not in evidence.killed_nodes and not evidence.may_end(node):
            yield f"the manager of node {node} ended without a cause"
    for cut in evidence.cuts():
        if cut.end_ns - cut.begin_ns > _MUST_FENCE_NS and not set(cut.nodes) & set(evidence.ended_nodes):
            yield f"the link between nodes {cut.nodes} was cut for long, and neither was declared dead"
    for rank in range(plan.nodes * plan.workers):
        node = plan.node_of(rank)
        end = evidence.ended_workers.get(rank)
        if end is None:
            continue  # `Stuck` has been raised
        if rank in evidence.killed_workers and end[1] == -signal.SIGKILL:
            continue
        wanted = NODE_LOST_STATUS if node in evidence.ended_nodes else 0
        if end[1] != wanted:
            yield f"worker {rank} (node {node}) ended with status {end[1]}, not {wanted}"
        killed = evidence.killed_nodes.get(node)
        if killed is not None and end[0] > killed and steps[rank]:
            took = (end[0] - killed) / _S - own_s(plan, rank, evidence.disturbances, killed, end[0])
            if took > NODE_LOST_S + MARGIN_S:
                yield f"worker {rank} ended {took:.1f} s after its manager had been killed"


def _died_before(evidence: Evidence, ns: int) -> list[int]:
    ranks = range(evidence.plan.nodes * evidence.plan.workers)
    return [rank for rank in ranks if (died := evidence.died_ns(rank)) is not None and died <= ns]


def check_causes(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """Every error has a cause that began before it."""
    nodes_ended = {**evidence.ended_nodes, **evidence.killed_nodes}
    fenced = evidence.fencing_cuts()
    first_node_end = min([*nodes_ended.values(), *(cut.begin_ns for cut in fenced)], default=None)
    for step in (step for each in steps for step in each):
        end = step.end_ns
        if end is None or step.outcome == Outcome.OK:
            continue
        name = f"worker {step.rank}: {Outcome(step.outcome).name} in {Kind(step.kind).name} {step.which}"
        if step.outcome == Outcome.PAGE_LOST and (first_node_end is None or first_node_end > end):
            yield f"{name}, but no node was lost"
        elif step.outcome == Outcome.PAGE_TIMEOUT and not _kept_up(evidence, step.begin_ns, end):
            yield f"{name}, but nothing was stopped or cut"
        elif step.outcome == Outcome.BROKEN and not _died_before(evidence, end) and not fenced:
            yield f"{name}, but nobody had died"
        elif step.outcome == Outcome.NODE_LOST and not {0, evidence.plan.node_of(step.rank)} & set(
            nodes_ended
        ):
            yield f"{name}, but its node lives"
        elif step.outcome == Outcome.WAIT_TIMEOUT and (step.kind != Kind.ACQUIRE or step.told[0] < 0):
            yield f"{name}, but it has no timeout"
        elif step.outcome == Outcome.OTHER:
            yield f"{name}: an error that no event explains"


def _kept_up(evidence: Evidence, begin_ns: int, end_ns: int) -> bool:
    return any(
        each.begin_ns <= end_ns
        and begin_ns <= each.end_ns + _LATE_NS + (each.end_ns - each.begin_ns if each.is_cut else 0)
        for each in evidence.disturbances
    )


def check_times(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """Every wait ended in time; also the last ones of those whose manager was killed."""
    plan, disturbances = evidence.plan, evidence.disturbances
    for step in (step for each in steps for step in each):
        if step.end_ns is None:
            continue
        others = others_s(disturbances, step.begin_ns, step.end_ns)
        begin = step.begin_ns
        bound = bound_s(step.kind, step.told, others)
        if step.outcome == Outcome.NODE_LOST:
            killed = evidence.killed_nodes.get(plan.node_of(step.rank))
            if killed is None:
                continue
            begin, bound = max(begin, killed), NODE_LOST_S
        took = (step.end_ns - begin) / _S - own_s(plan, step.rank, disturbances, begin, step.end_ns)
        if took > bound:
            yield (
                f"worker {step.rank} was in {Kind(step.kind).name} {step.which} for {took:.2f} s, "
                f"at most {bound:.2f} are right (it ended with {Outcome(step.outcome).name})"
            )


def check_values(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """What was seen was written, and counters do not go back for any reader."""
    written: dict[tuple[int, int, int], int] = {}
    for step in (step for each in steps for step in each):
        if step.kind == Kind.WRITE:
            for word in range(3):
                key = (step.which, word, step.told[word])
                written[key] = min(written.get(key, step.begin_ns), step.begin_ns)
    for rank, own in enumerate(steps):
        newest: dict[int, int] = defaultdict(int)
        for step in own:
            if step.outcome != Outcome.OK or step.kind not in (Kind.READ, Kind.LOOK, Kind.WRITE):
                continue
            seen = step.told if step.kind == Kind.WRITE else step.seen
            assert step.end_ns is not None
            for word in range(3):
                if seen[word] and written.get((step.which, word, seen[word]), step.end_ns + 1) > step.end_ns:
                    where = f"word {word} of cell {step.which}"
                    yield f"worker {rank} saw {seen[word]:#x} in {where}: nobody had written it"
            if seen[1] < newest[step.which]:
                yield f"worker {rank} saw cell {step.which} go back from {newest[step.which]} to {seen[1]}"
            newest[step.which] = max(newest[step.which], seen[1])


def check_locks(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """One holder at a time; a death is told once, to the next."""
    sections: dict[int, list[Section]] = defaultdict(list)
    for own in steps:
        for section in sections_of(own):
            sections[section.group].append(section)
    for group, each in sections.items():
        # What a worker believes whose node is dead (it was stopped then) concerns nobody else.
        those = [section for section in each if not _believed(evidence, section)]
        those.sort(key=lambda section: section.acquired_ns)
        for before, after in itertools.pairwise(those):
            died = evidence.died_ns(before.rank)
            if after.owner_died:
                continue
            if before.release_ns is None and died is not None:
                yield f"worker {before.rank} died with lock {group}, the next, {after.rank}, was not told"
            elif before.release_ns is None or before.release_ns > after.acquired_ns:
                yield f"workers {before.rank} and {after.rank} held lock {group} at the same time"
        told = [section for section in those if section.owner_died]
        causes = _may_have_died_with(evidence, steps, group)
        for count, section in enumerate(told, start=1):
            if sum(died <= section.acquired_ns for died in causes) < count:
                yield f"worker {section.rank} got OwnerDiedError for lock {group}, but no holder had died"


def _believed(evidence: Evidence, section: Section) -> bool:
    killed = evidence.killed_nodes.get(evidence.plan.node_of(section.rank))
    return killed is not None and killed <= section.acquired_ns


def _may_have_died_with(evidence: Evidence, steps: list[list[Step]], group: int) -> list[int]:
    """Return when workers died that had the lock then, or asked for it, or gave it up shortly before."""
    found = []
    for rank, own in enumerate(steps):
        died = evidence.died_ns(rank)
        if died is None:
            continue
        fenced = (
            evidence.plan.node_of(rank) not in evidence.killed_nodes and rank not in evidence.killed_workers
        )
        # A node that was declared dead had been so for others some time before it ended.
        since = died - (120 * _S if fenced or _kept_up(evidence, died, died) else _LATE_NS)
        asked = [step for step in own if step.kind in (Kind.ACQUIRE, Kind.RELEASE) and step.which == group]
        held = (
            asked and asked[-1].kind == Kind.ACQUIRE and asked[-1].outcome in (Outcome.OK, Outcome.OWNER_DIED)
        )
        if held or any(step.end_ns is None or step.end_ns >= since for step in asked):
            found.append(since if fenced else died)
    return found


def check_cells(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """What the holders of a cell's lock find there."""
    completed: dict[int, list[tuple[int, int]]] = defaultdict(list)
    abandoned: dict[int, int] = {}
    for step in (step for each in steps for step in each):
        if step.kind == Kind.WRITE and step.outcome == Outcome.OK and step.end_ns is not None:
            completed[step.which].append((step.end_ns, step.told[1]))
        elif step.kind == Kind.ABANDON:
            abandoned[step.which] = min(abandoned.get(step.which, step.begin_ns), step.begin_ns)
    times: dict[int, list[int]] = {}
    highest: dict[int, list[int]] = {}
    for cell, writes in completed.items():
        writes.sort()
        times[cell] = [end for end, _ in writes]
        highest[cell] = _running_maximum(counter for _, counter in writes)
    writers: dict[tuple[int, int], int] = {}
    for own in steps:
        mending = False
        for step in own:
            if step.kind == Kind.ACQUIRE:
                mending = step.outcome == Outcome.OWNER_DIED
            if step.kind != Kind.READ or step.outcome != Outcome.OK:
                continue
            cell, value = step.which, step.seen
            who = f"worker {step.rank}, which held the lock of cell {cell}, found"
            if not cells.is_whole(cell, value):
                if not mending and abandoned.get(cell, step.begin_ns) >= step.begin_ns:
                    yield f"{who} it half written: {value}"
                continue
            if writers.setdefault((cell, value[1]), value[0]) != value[0]:
                yield f"{who} count {value[1]} of writer {value[0]}, others of {writers[cell, value[1]]}"
            earlier = bisect_left(times.get(cell, []), step.begin_ns)
            if earlier and highest[cell][earlier - 1] > value[1]:
                yield f"{who} count {value[1]}, after {highest[cell][earlier - 1]} had been written"


def _running_maximum(values: Iterable[int]) -> list[int]:
    found: list[int] = []
    for value in values:
        found.append(max(value, found[-1]) if found else value)
    return found


def check_barriers(evidence: Evidence, steps: list[list[Step]]) -> Iterator[str]:
    """Nobody is through before all have come."""
    arrived: dict[int, list[int]] = defaultdict(list)
    for step in (step for each in steps for step in each):
        if step.kind == Kind.BARRIER:
            arrived[step.which].append(step.begin_ns)
    for step in (step for each in steps for step in each):
        if step.kind == Kind.BARRIER and step.outcome == Outcome.OK:
            assert step.end_ns is not None
            there = sum(begin <= step.end_ns for begin in arrived[step.which])
            if there < len(steps):
                yield f"worker {step.rank} passed barrier {step.which} when {there} of {len(steps)} had come"


def summary(evidence: Evidence) -> str:
    """Return one line of figures about a job."""
    steps = [step for rank, records in enumerate(evidence.journals) for step in steps_of(rank, records)]
    errors: dict[str, int] = defaultdict(int)
    for step in steps:
        if step.outcome not in (Outcome.OK, Outcome.BEGIN) and step.kind != Kind.ABANDON:
            errors[Outcome(step.outcome).name.lower()] += 1
    told = ", ".join(f"{count} {name}" for name, count in sorted(errors.items())) or "no error"
    return f"{len(evidence.plan.events)} events, {len(steps):,} steps, {told}"
