"""Crashes, cut links and stopped processes: safety under all of them, progress after they heal."""

from collections import Counter

import pytest

from dsm.errors import Status
from dsm.limits import ADDRESS_LOW
from dsm.testing.simulation import Cluster, Parts, Shape, Violation, World, report, run_seed
from dsm.testing.simulation.faults import Calm, Stormy
from dsm.testing.simulation.program import UNIQUE, Touch
from dsm.types import Region, RegionOptions

MILLISECOND = 1_000_000
BLOCK = 10


@pytest.mark.parametrize("first", range(0, 120, BLOCK))
def test_checks_hold_for_seeds_with_faults(first):
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed, faults="all")
        assert outcome.ok, report(outcome)


def test_faults_hit_what_they_are_meant_to_hit():
    hit = Counter()
    for seed in range(300, 380):
        hit.update(run_seed(seed, faults="all", min_events=2000).faults)
    for what in (
        "transactions with a dead requester",
        "transactions with a dead source",
        "transactions that await a dead holder",
        "requests to a dead directory",
        "zombies",
        "cuts that heal",
        "owners replaced",
        "VOID answered with ABSENT",
        "accesses to lost pages",
        "waits that were too long",
    ):
        assert hit[what], f"no fault hit this: {what} ({hit})"


def test_a_seed_with_faults_does_the_same_things_again():
    first, second = (run_seed(4, faults="all") for _ in range(2))
    assert (first.events, first.digest, first.faults) == (second.events, second.digest, second.faults)
    assert first.digest != run_seed(4, faults="none").digest


def test_without_faults_nothing_is_hit():
    assert not run_seed(4, faults="none").faults


# -- one fault at a time -----------------------------------------------------------------------------------


class Patient(Calm):
    """No faults of its own; waits end at the third age, one a millisecond."""

    def __init__(self, seed):
        super().__init__(seed)
        self.patience = 3
        self.age_interval = MILLISECOND
        self.span = MILLISECOND


def small(nodes, pages, home=0, faults=Calm, seed=1):
    """Nodes with one thread each, and a region."""
    shape = Shape(nodes, 1, 1)
    options = RegionOptions(nbytes=pages * 65536, page_size=65536, home=home)
    shape.regions.append(Region(1, options, ADDRESS_LOW, tuple(range(nodes))))
    return Cluster(seed, shape, Parts(faults=faults))


def write(page):
    return Touch(1, ((page, 0, UNIQUE),), 5)


def read(page):
    return Touch(1, ((page, 0, None),), 6)


def run(cluster, programs):
    cluster.run_programs(programs, 200_000)


def test_the_owner_takes_its_page_along():
    cluster = small(3, 2)
    run(cluster, {1: [write(0)], 2: [write(1)]})
    cluster.nodes[1].crash()
    cluster.world.run(10_000)
    run(cluster, {0: [read(0), read(1)], 2: [read(0), write(1)]})
    assert cluster.losses.tally["accesses to lost pages"] == 2


def test_a_copy_survives_its_owner():
    cluster = small(3, 1)
    run(cluster, {1: [write(0)]})
    run(cluster, {2: [read(0)]})
    cluster.nodes[1].crash()
    cluster.world.run(10_000)
    reader = cluster.threads[0]
    reader.observed = []
    run(cluster, {0: [read(0), write(0)]})
    cluster.losses.rests()
    assert reader.observed == [1001]
    assert cluster.losses.tally["owners replaced"] == 1
    assert not cluster.losses.tally["accesses to lost pages"]


def test_a_cut_that_heals_in_time_is_invisible():
    cluster = small(2, 1, faults=Patient)
    cluster.membership.silence = 10 * MILLISECOND
    run(cluster, {0: [write(0)]})
    cluster.membership.cut(0, 1, (2 * MILLISECOND, MILLISECOND))
    began = cluster.world.now
    run(cluster, {1: [read(0)]})
    assert cluster.world.now - began >= MILLISECOND
    assert not cluster.membership.declared and not cluster.losses.tally["waits that were too long"]


def test_a_cut_that_lasts_makes_one_node_go_and_never_the_coordinator():
    cluster = small(3, 2)
    cluster.membership.silence = MILLISECOND
    cluster.membership.cut(0, 1, (20 * MILLISECOND, 20 * MILLISECOND))
    run(cluster, {1: [write(0)], 2: [write(1)]})
    assert cluster.membership.declared == [1]
    assert cluster.nodes[1].dead and not cluster.nodes[0].dead


def test_a_wait_for_a_stopped_manager_ends_and_the_page_comes_after_it_goes_on():
    cluster = small(2, 1, faults=Patient)
    run(cluster, {0: [write(0)]})
    cluster.world.stop(cluster.nodes[0], 20 * MILLISECOND)
    thread = cluster.threads[1]
    thread.observed = []
    run(cluster, {1: [read(0)]})
    assert cluster.losses.tally["waits that were too long"] >= 4
    assert thread.observed == [1001] and not cluster.losses.tally["accesses to lost pages"]


def test_a_stopped_worker_keeps_its_page_until_it_goes_on():
    cluster = small(2, 1, faults=Patient)
    run(cluster, {0: [write(0)]})
    worker = cluster.nodes[0].workers[0]
    for actor in (worker, *worker.threads):
        cluster.world.stop(actor, 20 * MILLISECOND)
    began = cluster.world.now
    run(cluster, {1: [write(0)]})
    assert cluster.world.now - began >= 20 * MILLISECOND
    assert cluster.losses.tally["waits that were too long"]


def test_a_crash_leaves_a_prefix_of_each_link():
    cluster = small(2, 1)
    link = cluster.network.link(1, 0)
    seen = []
    cluster.nodes[0].deliver = lambda what: seen.append(what[1])
    for number in range(20):
        link.send(number)
    cluster.nodes[1].crash()
    cluster.world.run(1000)
    assert seen == list(range(len(seen))) and len(seen) < 20


# -- the checkers --------------------------------------------------------------------------------------------


def test_a_page_that_is_lost_without_need_is_caught():
    cluster = small(3, 1)
    run(cluster, {1: [write(0)]})
    cluster.nodes[2].crash()
    wake = type("W", (), {"peer": 2, "status": Status.PAGE_LOST})()
    cluster.threads[0].program = [read(0)]
    cluster.threads[0].position = 0
    with pytest.raises(Violation, match="nothing of r1 pages 0 to 0 is lost"):
        cluster.losses.check(0, cluster.threads[0], wake)
    cluster.nodes[1].crash()
    wake.peer = 0
    with pytest.raises(Violation, match="blames node 0, which lives"):
        cluster.losses.check(0, cluster.threads[0], wake)
    wake.peer = 1
    cluster.losses.check(0, cluster.threads[0], wake)


def test_a_write_of_the_dead_that_a_survivor_could_read_is_caught():
    cluster = small(3, 1)
    run(cluster, {0: [write(0)]})
    truth = cluster.truths[1]
    cluster.losses.node_gone(1)
    with pytest.raises(Violation, match="declared dead, writes"):
        truth.written(1, 0)
    truth.written(0, 0)


def test_what_a_stopped_actor_has_planned_happens_later_in_the_same_order():
    class Actor:
        def __init__(self):
            self.done = []

        def step(self, number):
            self.done.append((world.now, number))

    world = World(1)
    actor, other = Actor(), Actor()
    for number in range(3):
        world.after(10 + number, actor.step, number)
    world.after(11, other.step, 7)
    world.stop(actor, 100)
    world.run(100)
    assert actor.done == [(100, 0), (100, 1), (100, 2)] and other.done == [(11, 7)]


def test_a_seed_is_drawn_for_faults_or_not():
    assert {Stormy(seed).active for seed in range(20)} == {True}
    assert {Calm(seed).active for seed in range(20)} == {False}
