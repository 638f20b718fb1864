"""The judge of chaos: good journals pass, and each lie in them is found."""

import signal

import pytest

from dsm.testing.chaos import cells
from dsm.testing.chaos.journal import NODE_LOST_STATUS, Kind, Outcome, Record
from dsm.testing.chaos.plan import JobPlan
from dsm.testing.chaos.timing import Disturbance
from dsm.testing.chaos.verdict import Evidence, judge, summary

S = 1_000_000_000
CELL = 0
GROUP = cells.group_of(CELL)
PLAN = JobPlan("seed", 2, 1, "cyclic", 4096, False)


class Writer:
    """A journal in the making; each record comes a millisecond after the one before."""

    def __init__(self, rank, start_s=0.0):
        self.rank = rank
        self.records = []
        self.now = int(start_s * S)

    def step(self, kind, which=0, told=(0, 0, 0), outcome=Outcome.OK, seen=None, took_s=0.001):
        self.begin(kind, which, told)
        self.now += int(took_s * S)
        self.records.append(Record(kind, outcome, which, self.now, *(seen or told)))
        return self

    def begin(self, kind, which=0, told=(0, 0, 0)):
        self.now += S // 1000
        self.records.append(Record(kind, Outcome.BEGIN, which, self.now, *told))
        return self

    def acquire(self, outcome=Outcome.OK, **more):
        return self.step(Kind.ACQUIRE, GROUP, (-1, 0, 0), outcome, **more)

    def read(self, seen, **more):
        return self.step(Kind.READ, CELL, seen=seen, **more)

    def write(self, counter, **more):
        return self.step(Kind.WRITE, CELL, value(self.rank, counter), **more)

    def release(self):
        return self.step(Kind.RELEASE, GROUP)


def value(rank, counter):
    return rank + 1, counter, cells.checksum(CELL, rank + 1, counter)


def evidence(*writers, **more):
    found = Evidence(PLAN, [writer.records for writer in writers], **more)
    for rank in range(2):
        found.ended_workers.setdefault(rank, (1000 * S, 0))
    return found


def turn(rank, at_s, seen, counter):
    return Writer(rank, at_s).acquire().read(seen).write(counter).release()


def dead(rank, at_s):
    """What is known when that rank was killed."""
    at = int(at_s * S)
    return {"killed_workers": {rank: at}, "ended_workers": {rank: (at, -signal.SIGKILL)}}


def found(*writers, **more):
    return " / ".join(judge(evidence(*writers, **more)))


def test_what_is_right_is_found_right():
    first = turn(0, 0, (0, 0, 0), 1)
    second = turn(1, 1, value(0, 1), 2).step(Kind.LOOK, CELL, seen=value(1, 2))
    first.now = 2 * S
    first.step(Kind.BARRIER, 1).step(Kind.LEAVE)
    second.step(Kind.BARRIER, 1, took_s=1.5).step(Kind.LEAVE)
    assert found(first, second) == ""
    assert "0 events, 13 steps, no error" in summary(evidence(first, second))


def test_a_value_that_nobody_wrote():
    assert "nobody had written" in found(Writer(0).step(Kind.LOOK, CELL, seen=(0, 3, 0)), Writer(1))


def test_a_value_before_it_was_written():
    early = Writer(1, 0).step(Kind.LOOK, CELL, seen=value(0, 1))
    assert "nobody had written" in found(turn(0, 1, (0, 0, 0), 1), early)


def test_a_poisoned_read():
    assert "nobody had written" in found(Writer(0).read((-1, -1, -1)), Writer(1))


def test_a_counter_that_goes_back_for_a_reader():
    reader = Writer(1, 1).step(Kind.LOOK, CELL, seen=value(0, 1)).step(Kind.LOOK, CELL, seen=(0, 0, 0))
    assert "go back" in found(turn(0, 0, (0, 0, 0), 1), reader)


def test_a_write_that_the_next_holder_does_not_see():
    assert "after 1 had been written" in found(turn(0, 0, (0, 0, 0), 1), turn(1, 1, (0, 0, 0), 1))


def test_a_cell_that_is_half_written_under_its_lock():
    torn = (1, 1, 0)
    writer = Writer(0).acquire().read((0, 0, 0)).begin(Kind.WRITE, CELL, value(0, 1))
    reader = Writer(1, 1).acquire().read(torn)
    assert "half written" in found(writer, reader)
    told = Writer(1, 1).acquire(Outcome.OWNER_DIED).read(torn).write(2).release()
    assert found(writer, told, **dead(0, 0.5)) == ""


def test_two_holders_at_the_same_time():
    assert "at the same time" in found(
        Writer(0).acquire().step(Kind.LOOK, 5, took_s=1), Writer(1, 0.5).acquire()
    )


def test_the_death_of_a_holder_that_is_not_told():
    assert "was not told" in found(Writer(0).acquire(), Writer(1, 1).acquire().release(), **dead(0, 0.5))


def test_a_death_that_nobody_died():
    told = Writer(1, 1).acquire(Outcome.OWNER_DIED).release()
    assert "no holder had died" in found(turn(0, 0, (0, 0, 0), 1), told)


def test_one_death_that_is_told_twice():
    told = Writer(1, 1).acquire(Outcome.OWNER_DIED).release().acquire(Outcome.OWNER_DIED).release()
    assert "no holder had died" in found(Writer(0).acquire(), told, **dead(0, 0.5))


def test_a_barrier_that_opens_too_early():
    assert "passed barrier 1" in found(Writer(0).step(Kind.BARRIER, 1), Writer(1, 1).step(Kind.BARRIER, 1))


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome.PAGE_LOST, "no node was lost"),
        (Outcome.PAGE_TIMEOUT, "nothing was stopped"),
        (Outcome.BROKEN, "nobody had died"),
        (Outcome.NODE_LOST, "its node lives"),
        (Outcome.WAIT_TIMEOUT, "no timeout"),
        (Outcome.OTHER, "no event explains"),
    ],
)
def test_an_error_without_a_cause(outcome, said):
    assert said in found(Writer(0).step(Kind.LOOK, CELL, outcome=outcome), Writer(1))


def test_errors_with_their_causes():
    stop = Disturbance(0, 2 * S, (1,))
    reader = Writer(0).step(Kind.LOOK, CELL, outcome=Outcome.PAGE_TIMEOUT, took_s=1)
    assert found(reader, Writer(1), disturbances=[stop]) == ""
    lost = Writer(1, 3).step(Kind.LOOK, CELL, outcome=Outcome.NODE_LOST)
    reader = Writer(0, 3.5).step(Kind.LOOK, CELL, outcome=Outcome.PAGE_LOST)
    ends = {"killed_nodes": {1: 3 * S}, "ended_nodes": {1: 3 * S}}
    assert found(reader, lost, ended_workers={1: (4 * S, NODE_LOST_STATUS)}, **ends) == ""


def test_a_wait_that_is_too_long():
    slow = Writer(0).step(Kind.LOOK, CELL, took_s=10)
    assert "for 10.00 s" in found(slow, Writer(1))
    own = Disturbance(0, 9 * S, (0,), 0)
    assert found(slow, Writer(1), disturbances=[own]) == ""
    other = Disturbance(0, 9 * S, (1,), 1)
    assert "for 10.00 s" in found(slow, Writer(1), disturbances=[other])


def test_a_manager_whose_death_is_noticed_late():
    lost = Writer(1).step(Kind.ACQUIRE, GROUP, (-1, 0, 0), outcome=Outcome.NODE_LOST, took_s=4)
    ends = {"killed_nodes": {1: S}, "ended_nodes": {1: S}, "ended_workers": {1: (4 * S, NODE_LOST_STATUS)}}
    assert "for 3.00 s, at most 2.00" in found(Writer(0), lost, **ends)


def test_ends_without_a_cause():
    assert "worker 0 (node 0) ended with status 1" in found(Writer(0), Writer(1), ended_workers={0: (S, 1)})
    assert "node 1 ended without a cause" in found(
        Writer(0), Writer(1), ended_nodes={1: S}, ended_workers={1: (S, NODE_LOST_STATUS)}
    )


def test_a_long_cut_that_ends_nobody():
    cut = Disturbance(0, 25 * S, (0, 1))
    assert "neither was declared dead" in found(Writer(0), Writer(1), disturbances=[cut])
