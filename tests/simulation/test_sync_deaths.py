"""Workers that die in the simulation: who is told what at locks and barriers; nobody waits for ever."""

import pytest

from dsm.errors import InternalError
from dsm.sync.barrier import Barrier
from dsm.sync.lock import Lock
from dsm.sync.service import SyncHome
from dsm.testing.simulation.cluster import Parts
from dsm.testing.simulation.deaths import Gone, MortalNode, MortalThread, RankNode, run_deaths
from dsm.testing.simulation.world import Violation
from dsm.wire.calls import Op

BLOCK = 15


@pytest.mark.parametrize("first", range(0, 60, BLOCK))
def test_checks_hold_for_seeds(first):
    deaths = told = broken = 0
    for seed in range(first, first + BLOCK):
        truth = run_deaths(seed).nodes[0].truth
        deaths, told, broken = deaths + truth.deaths, told + truth.told, broken + truth.broken
    assert deaths > BLOCK and told > 3 and broken > BLOCK, (deaths, told, broken)


def test_the_same_seed_does_the_same_things():
    assert run_deaths(3).world.digest == run_deaths(3).world.digest != run_deaths(4).world.digest


def home_with(machine_class, method, replacement):
    """A home whose machines of that class have another method."""
    mutated = type("Mutated", (machine_class,), {method: replacement})

    class Home(SyncHome):
        def create(self, described):
            super().create(described)
            machine = self._machines[described.object]
            if type(machine) is machine_class:
                machine.__class__ = mutated

    return Home


def silent_death(self, gone):
    replies = Lock.gone(self, gone)
    self._died = False
    return [type(each)(each.node, each.ticket) for each in replies]


def kept_by_the_dead(self, gone):
    return []


def released_as_if_consistent(self, op, node, ticket, owner, a, b, now):
    return Lock.request(self, op, node, ticket, owner, a, 0, now)


def told_without_a_death(self, op, node, ticket, owner, a, b, now):
    if op == Op.LOCK_ACQUIRE and self._owner is None:
        self._died = True
    return Lock.request(self, op, node, ticket, owner, a, b, now)


def only_waiting_members_count(self, gone):
    self._members = {(each.node, each.owner[0]) for each in self._waiting}
    return Barrier.gone(self, gone)


def ranks_do_not_matter(self, missing):
    return []


def only_who_waits_is_told(self, missing):
    waiting, self._waiting = self._waiting, []
    self._missing = missing
    replies = self._refuse_without_ranks()
    self._missing, self._waiting = {}, waiting
    return replies


MUTANTS = [
    (MortalNode, Lock, "gone", silent_death),
    (MortalNode, Lock, "gone", kept_by_the_dead),
    (MortalNode, Lock, "request", released_as_if_consistent),
    (MortalNode, Lock, "request", told_without_a_death),
    (MortalNode, Barrier, "gone", only_waiting_members_count),
    (MortalNode, Barrier, "gone", kept_by_the_dead),
    (RankNode, Barrier, "ranks_missing", ranks_do_not_matter),
    (RankNode, Barrier, "ranks_missing", only_who_waits_is_told),
]


@pytest.mark.parametrize(("node", "machine", "method", "mutant"), MUTANTS)
def test_a_home_that_forgets_a_rule_is_caught(node, machine, method, mutant):
    home = home_with(machine, method, mutant)
    parts = Parts(node=type("Mutated", (node,), {"home_class": home}), thread=MortalThread)
    with pytest.raises((Violation, InternalError)):
        for seed in range(60):
            run_deaths(seed, parts)


class TellsItsOwnHomeOnly(MortalNode):
    def _tell_all(self, message):
        if isinstance(message, Gone):
            self._told(message)


def test_a_node_that_does_not_tell_other_homes_is_caught():
    with pytest.raises(Violation, match="stuck"):
        for seed in range(60):
            run_deaths(seed, Parts(node=TellsItsOwnHomeOnly, thread=MortalThread))
