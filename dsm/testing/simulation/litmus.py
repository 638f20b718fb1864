"""Litmus tests of memory models, over all placements of their threads on nodes and workers.

Owns the tests and what `sequential` forbids of each.  A test's variables lie on pages of their own or
share one; its threads run several rounds of it at random distances from one another, after some of
them have read the variables, so that stale copies are there to be seen.  The verdict looks only at
what the reads returned: it holds even where the checkers of `truth` are switched off.

Source of the names and shapes: Alglave, Maranget, Tautschnig, "Herding Cats", TOPLAS 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation.cluster import Cluster, Parts, Shape
from dsm.testing.simulation.program import Operation, Touch
from dsm.types import Region, RegionOptions

#: One step of a thread: variable, and None (read) or the value to write.
Step = tuple[str, int | None]
#: For each thread, its node and its worker there.
Placement = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Litmus:
    """One test: the threads' steps, and the outcome that must never be seen."""

    threads: tuple[tuple[Step, ...], ...]
    #: Takes what the reads returned, thread by thread, then the final values of x and y.
    forbidden: Callable[..., bool]


_WX, _WY, _RX, _RY = ("x", 1), ("y", 1), ("x", None), ("y", None)

LITMUS: dict[str, Litmus] = {
    "SB": Litmus(((_WX, _RY), (_WY, _RX)), lambda a, b, *_: a == 0 and b == 0),
    "MP": Litmus(((_WX, _WY), (_RY, _RX)), lambda a, b, *_: a == 1 and b == 0),
    "LB": Litmus(((_RX, _WY), (_RY, _WX)), lambda a, b, *_: a == 1 and b == 1),
    "WRC": Litmus(((_WX,), (_RX, _WY), (_RY, _RX)), lambda a, b, c, *_: a == 1 and b == 1 and c == 0),
    "IRIW": Litmus(
        ((_WX,), (_WY,), (_RX, _RY), (_RY, _RX)), lambda a, b, c, d, *_: (a, b, c, d) == (1, 0, 1, 0)
    ),
    "CoRR": Litmus(((_WX,), (_RX, _RX)), lambda a, b, *_: a == 1 and b == 0),
    "2+2W": Litmus(((_WX, ("y", 2)), (_WY, ("x", 2))), lambda x, y: x == 1 and y == 1),
}

#: Rounds of a test in one simulation.
ROUNDS = 6


def placements(threads: int) -> Iterator[Placement]:
    """Yield every way to put threads on nodes and workers, up to renaming."""

    def place(done: Placement) -> Iterator[Placement]:
        if len(done) == threads:
            yield done
            return
        nodes = max((node for node, _ in done), default=-1) + 1
        for node in range(nodes + 1):
            workers = max((worker for at, worker in done if at == node), default=-1) + 1
            for worker in range(workers + 1):
                yield from place((*done, (node, worker)))

    return place(())


def run_litmus(
    name: str,
    placement: Placement,
    seed: int,
    *,
    same_page: bool,
    parts: Parts | None = None,
    check: bool = True,
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
    same_page
        Both variables of a round lie on one page.
    parts
        Classes to build the simulation of.
    check
        Check the cluster at its rests; False: the outcomes alone are asked for.

    Returns
    -------
    list of tuple
        For each round: what the reads returned, thread by thread, then the final x and y.

    Raises
    ------
    Violation
        If a checker objects.
    """
    litmus = LITMUS[name]
    nodes = 1 + max(node for node, _ in placement)
    workers = 1 + max(worker for _, worker in placement)
    # Two nodes at least, so that the directory may be elsewhere; one thread a slot of each worker.
    shape = Shape(max(2, nodes), workers, len(placement))
    pages = ROUNDS if same_page else 2 * ROUNDS
    options = RegionOptions(nbytes=pages * 65536, page_size=65536, home="cyclic")
    shape.regions.append(Region(1, options, ADDRESS_LOW, tuple(range(shape.nodes))))
    cluster = Cluster(seed, shape, parts)
    random = cluster.world.random

    programs: dict[int, list[Operation]] = {}
    for index, (node, worker) in enumerate(placement):
        thread = cluster.nodes[node].workers[worker].threads[index]
        thread.observed = []
        programs[thread.number] = _program(litmus.threads[index], random, same_page)
    cluster.run_programs(programs, 100_000, spread=300_000, check=check)

    results: list[list[int]] = [[] for _ in range(ROUNDS)]
    for index, number in enumerate(programs):
        observed = cluster.threads[number].observed or []
        width = sum(value is None for _, value in litmus.threads[index])
        warm = len(observed) - width * ROUNDS
        for round_ in range(ROUNDS):
            results[round_] += observed[warm + round_ * width : warm + (round_ + 1) * width]
    reader = cluster.threads[0]
    reader.observed = []
    last: list[Operation] = [
        Touch(1, ((*_where(variable, round_, same_page), None),), 7)
        for round_ in range(ROUNDS)
        for variable in "xy"
    ]
    cluster.run_programs({0: last}, 200_000, check=check)
    for round_ in range(ROUNDS):
        results[round_] += reader.observed[2 * round_ : 2 * round_ + 2]
    return [tuple(result) for result in results]


def is_forbidden(name: str, outcome: tuple[int, ...]) -> bool:
    """Whether `sequential` forbids this outcome of a test."""
    litmus = LITMUS[name]
    return litmus.forbidden(*(outcome[-2:] if name == "2+2W" else outcome))


def _where(variable: str, round_: int, same_page: bool) -> tuple[int, int]:
    """Return page and word of a round's variable."""
    second = variable == "y"
    return (round_, int(second)) if same_page else (2 * round_ + second, 0)


def _program(steps: tuple[Step, ...], random: Random, same_page: bool) -> list[Operation]:
    program: list[Operation] = []
    for round_ in range(ROUNDS):
        if random.random() < 0.5:
            program.append(Touch(1, ((*_where(random.choice("xy"), round_, same_page), None),), 1))
    for round_ in range(ROUNDS):
        for index, (variable, value) in enumerate(steps):
            access = (*_where(variable, round_, same_page), value)
            program.append(Touch(1, (access,), 2 + index, random.choice((0, 0, 2_000, 100_000))))
    return program
