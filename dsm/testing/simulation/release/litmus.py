"""Litmus tests under release consistency, with and without synchronization.

Owns the ways to synchronize a test's accesses, and which relaxed outcomes may be seen without:

* ``plain``: not at all; what the sequential model forbids may be seen, but for `NEVER_RELAXED`;
* ``locks``: every access is a section of one lock;
* ``atomics``: an acquiring and releasing addition to one cell follows every write and precedes every read.

The tests are those of `dsm.testing.simulation.litmus`.
"""

from __future__ import annotations

from random import Random

from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.cluster import Shape
from dsm.testing.simulation.litmus import LITMUS, ROUNDS, Placement, Step
from dsm.testing.simulation.program import Operation
from dsm.testing.simulation.release.calls import TimedCall
from dsm.testing.simulation.release.cluster import ReleaseCluster
from dsm.testing.simulation.release.parts import ReleaseParts
from dsm.testing.simulation.release.thread import Word
from dsm.testing.simulation.release.truth import PAGE_BYTES, ReleaseTruth
from dsm.types import Region, RegionOptions
from dsm.wire.calls import Op

#: Tests whose outcome this implementation never shows, though the model allows it: nothing is read before
#: its turn (LB), and what a node has of a page only grows newer (CoRR).
NEVER_RELAXED = frozenset({"LB", "CoRR"})
_LOCK, _CELL, _BARRIER = 50, 51, 52
_WIDTH = 4
#: So large that neighbours have different homes.
_PAGE = 1 << 20


def run_release_litmus(
    name: str,
    placement: Placement,
    seed: int,
    *,
    way: str,
    same_page: bool,
    parts: ReleaseParts | None = None,
) -> list[tuple[int, ...]]:
    """Run one test some rounds and return its outcomes.

    Parameters
    ----------
    name
        Of `LITMUS`.
    placement
        Node and worker of each thread.
    seed
        Determines delays, and who has read what before.
    way
        ``"plain"``; ``"locks"``: each access is under a lock; ``"atomics"``: it follows an addition to an
        atomic, or precedes one.
    same_page
        Both variables of a round lie on one page.
    parts
        Classes to build the simulation of.

    Returns
    -------
    list of tuple
        For each round: what the reads returned, thread by thread, then the final values of x and y.
    """
    steps = LITMUS[name].threads
    nodes = 1 + max(node for node, _ in placement)
    workers = 1 + max(worker for _, worker in placement)
    # One node more than the test needs, so that homes may be elsewhere.
    shape = Shape(nodes + 1, workers, len(placement))
    pages = ROUNDS if same_page else 2 * ROUNDS
    options = RegionOptions(nbytes=pages * _PAGE, page_size=_PAGE, home="cyclic", consistency="release")
    shape.regions.append(Region(1, options, ADDRESS_LOW, tuple(range(shape.nodes))))
    cluster = ReleaseCluster(seed, shape, parts)
    random = cluster.world.random
    truth = cluster.truths[1]
    assert isinstance(truth, ReleaseTruth)
    truth.racy = {(page, offset) for page in range(pages) for offset in range(PAGE_BYTES)}
    cluster.add_object(_LOCK, "lock", 0, random)
    cluster.add_object(_CELL, "atomic", 0, random)
    cluster.add_object(_BARRIER, "barrier", len(placement), random)

    programs: dict[int, list[Operation]] = {}
    warm: list[int] = []
    for index, (node, worker) in enumerate(placement):
        thread = cluster.nodes[node].workers[worker].threads[index]
        thread.observed = []
        program = [
            _word(random.choice("xy"), None, round_, same_page)
            for round_ in range(ROUNDS)
            if random.random() < 0.5
        ]
        warm.append(len(program))
        operations: list[Operation] = [*program, TimedCall(Op.BARRIER_WAIT, _BARRIER, thread.number)]
        for round_ in range(ROUNDS):
            for step in steps[index]:
                operations += _synchronized(step, round_, same_page, way, random)
        operations.append(TimedCall(Op.BARRIER_WAIT, _BARRIER, thread.number))
        programs[thread.number] = operations
    first = next(iter(programs))
    programs[first] += [
        _word(variable, None, round_, same_page) for round_ in range(ROUNDS) for variable in "xy"
    ]
    cluster.run_programs(programs, 200_000, spread=300_000)

    results: list[list[int]] = [[] for _ in range(ROUNDS)]
    final: list[int] = []
    for index, number in enumerate(programs):
        observed = [truth.labels.get(value, 0) for value in cluster.threads[number].observed or ()]
        width = sum(value is None for _, value in steps[index])
        done = observed[warm[index] : warm[index] + width * ROUNDS]
        for round_ in range(ROUNDS):
            results[round_] += done[round_ * width : (round_ + 1) * width]
        if number == first:
            final = observed[warm[index] + width * ROUNDS :]
    for round_ in range(ROUNDS):
        results[round_] += final[2 * round_ : 2 * round_ + 2]
    return [tuple(result) for result in results]


def _word(variable: str, value: int | None, round_: int, same_page: bool, think: int = 0) -> Word:
    second = variable == "y"
    page, offset = (round_, 8 * second) if same_page else (2 * round_ + second, 0)
    return Word(1, ((page, offset, value),), _WIDTH, 2 + second, think)


def _synchronized(step: Step, round_: int, same_page: bool, way: str, random: Random) -> list[Operation]:
    """Return one access with its synchronization."""
    variable, value = step
    word = _word(variable, value, round_, same_page, random.choice((0, 0, 2_000, 100_000)))
    if way == "locks":
        return [TimedCall(Op.LOCK_ACQUIRE, _LOCK), word, TimedCall(Op.LOCK_RELEASE, _LOCK)]
    if way == "atomics":
        addition = TimedCall(Op.ATOMIC_ADD, _CELL, 1)
        return [addition, word] if value is None else [word, addition]
    return [word]
