"""The verdict as a pure function: who keeps whom waiting."""

from __future__ import annotations

import msgspec
import pytest

from dsm.cli.status.tables import render
from dsm.cli.status.verdict import verdict
from dsm.cli.status.words import enumerate_words, seconds
from dsm.wire.status import (
    ClusterStatus,
    Demand,
    Fencing,
    NodeStatus,
    ObjectStatus,
    PartyStatus,
    PinStatus,
    RegionStatus,
    SilentNode,
    Transaction,
    Unready,
    Wait,
    WorkerStatus,
)

OLD = 30.0


def pid(rank):
    return 100 + rank


def worker(rank, *waits, state="S", on=0, cpu_s=2.0):
    return WorkerStatus(rank, rank, pid(rank), state, cpu_s, waits)


def lock_wait(rank, name, number, since_s=OLD, home=0):
    return Wait("lock", number, name, since_s, pid(rank), token=1, asked=(home,))


def barrier_wait(rank, name="dsm.job", number=9, since_s=OLD):
    return Wait("barrier", number, name, since_s, pid(rank), token=1, asked=(0,))


def page_wait(rank, page, asked=(), kind="write", count=1, since_s=OLD):
    return Wait(kind, 1, "grid", since_s, pid(rank), page=page, count=count, asked=asked)


def party(node, number, token=1, since_s=OLD):
    return PartyStatus(node, number, token, since_s)


def lock(number, name, holder=None, waiting=()):
    return ObjectStatus(number, "lock", name, 0, holder, waiting)


def barrier(waiting, parties, name="dsm.job"):
    return ObjectStatus(9, "barrier", name, 0, None, waiting, parties)


REGION = RegionStatus(1, "grid", 1 << 20, 256, 4096, 10, 5)


def node(number, workers=(), **lists):
    return NodeStatus(
        number, "c0ffee", 3, f"h:{number}", f"@dsm-{number}", 900 + number, "S", 99.0, 1.0, 4, (0, 1),
        tuple(workers), regions=(REGION,), **lists,
    )  # fmt: skip


def cluster(*nodes, silent=()):
    value = ClusterStatus("c0ffee", 3, nodes, silent)
    assert "verdict" in render(value)
    return value


def one(*nodes, silent=()):
    [sentence] = verdict(cluster(*nodes, silent=silent))
    return sentence


def test_a_stopped_holder():
    workers = [worker(0, lock_wait(0, "best", 1)), worker(1, state="T"), worker(2, lock_wait(2, "best", 1))]
    held = lock(1, "best", party(0, 1, since_s=41), (party(0, 0), party(0, 2)))
    assert one(node(0, workers, objects=(held,))) == (
        "rank 1 (pid 101, node 0) holds lock 'best' since 41 s and is stopped (SIGSTOP): ranks 0 and 2 "
        "wait for it; `kill -CONT 101` lets it go on"
    )


def test_a_holder_in_a_debugger_is_not_to_be_continued_by_a_signal():
    workers = [worker(0, lock_wait(0, "best", 1)), worker(1, state="t")]
    sentence = one(node(0, workers, objects=(lock(1, "best", party(0, 1)),)))
    assert "is stopped by a debugger" in sentence and "kill" not in sentence


def test_a_holder_that_waits_outside_dsm():
    workers = [worker(0, lock_wait(0, "best", 1)), worker(1)]
    assert (
        "is not waiting in dsm: it sleeps, or is in a system call (state S, 2.0 s of processor time)"
        in one(node(0, workers, objects=(lock(1, "best", party(0, 1)),)))
    )


def test_two_ranks_that_wait_for_each_other():
    workers = [worker(0, lock_wait(0, "b", 2)), worker(1, lock_wait(1, "a", 1))]
    objects = (lock(1, "a", party(0, 0)), lock(2, "b", party(0, 1)))
    sentence = one(node(0, workers, objects=objects))
    assert sentence.startswith(
        "rank 0 (pid 100, node 0) and rank 1 (pid 101, node 0) wait for each other's locks 'b' and 'a': "
        "a deadlock"
    )


def test_three_in_a_circle_and_one_who_waits_for_them():
    workers = [worker(r, lock_wait(r, "abca"[r + 1], (r + 1) % 3 + 1)) for r in range(3)]
    workers.append(worker(3, lock_wait(3, "a", 1)))
    objects = tuple(lock(r + 1, "abc"[r], party(0, r)) for r in range(3))
    sentence = one(node(0, workers, objects=objects))
    for text in ("lock 'a', which rank 0", "lock 'b', which rank 1", "lock 'c', which rank 2", "a deadlock"):
        assert text in sentence


def test_a_lock_held_into_a_barrier_is_a_deadlock():
    workers = [worker(0, barrier_wait(0)), worker(1, lock_wait(1, "a", 1))]
    objects = (lock(1, "a", party(0, 0)), barrier((party(0, 0),), 2))
    sentence = one(node(0, workers, objects=objects))
    assert "waits for the barrier of the job, and for that rank 1 is missing" in sentence
    assert "waits for lock 'a', which rank 0 holds" in sentence and "a deadlock" in sentence


def test_another_thread_of_the_holder_may_wait():
    waiting = Wait("lock", 2, "b", OLD, 777, token=5, asked=(0,))
    workers = [worker(0, lock_wait(0, "a", 1)), worker(1, waiting, state="R")]
    objects = (lock(1, "a", party(0, 1, token=4)), lock(2, "b", party(0, 0, token=1)))
    sentences = verdict(cluster(node(0, workers, objects=objects)))
    assert not any("deadlock" in sentence for sentence in sentences)
    assert any("rank 1 (pid 101, node 0) holds lock 'a'" in s and "runs Python" in s for s in sentences)


def test_the_missing_rank_and_who_waits_behind_it():
    workers = [
        worker(0, barrier_wait(0)),
        worker(1, lock_wait(1, "a", 1)),
        worker(2, state="R", cpu_s=39),
    ]
    objects = (lock(1, "a", party(0, 2), (party(0, 1),)), barrier((party(0, 0),), 3))
    sentence = one(node(0, workers, objects=objects))
    assert sentence.startswith(
        "rank 2 (pid 102, node 0) is missing from the barrier of the job (1 of 3 have come"
    )
    assert "and holds lock 'a' since 30 s" in sentence or "holds lock 'a' since 30 s and" in sentence
    assert "39 s of processor time" in sentence and "ranks 0 and 1 wait for it" in sentence


def test_those_behind_the_waiting_are_counted_too():
    workers = [worker(0, lock_wait(0, "b", 2)), worker(1, lock_wait(1, "a", 1)), worker(2, state="T")]
    objects = (lock(1, "a", party(0, 2)), lock(2, "b", party(0, 1)))
    sentence = one(node(0, workers, objects=objects))
    assert ": rank 1 waits for it, and rank 0 waits for those; `kill -CONT 102`" in sentence


def test_a_rank_without_a_worker():
    sentence = one(node(0, [worker(0, barrier_wait(0))], objects=(barrier((party(0, 0),), 2),)))
    assert sentence.startswith("rank 1 is missing from the barrier") and "no worker of that rank" in sentence


def test_a_barrier_of_some_accuses_nobody_when_anybody_may_come():
    workers = [worker(0, barrier_wait(0, "half")), worker(1), worker(2)]
    sentence = one(node(0, workers, objects=(barrier((party(0, 0),), 2, "half"),)))
    assert "1 of 2 have come; who else is to come is not known (ranks 1 and 2 are elsewhere)" in sentence


def test_a_barrier_with_more_parties_than_workers():
    workers = [worker(0, barrier_wait(0, "half"))]
    sentence = one(node(0, workers, objects=(barrier((party(0, 0),), 2, "half"),)))
    assert "there is no other worker; are parties=2 right?" in sentence


def test_a_silent_manager_and_what_it_is_asked_for():
    stopped = SilentNode(1, "h:1", "h:0", 901, "T", "@dsm-1")
    sentence = one(node(0, [worker(0, page_wait(0, 3, asked=(1,)))]), silent=(stopped,))
    assert sentence == (
        "node 1's manager (pid 901) is stopped (SIGSTOP); it was asked for page 3 of region 'grid' to write: "
        "rank 0 waits for it; `kill -CONT 901` lets it go on"
    )


def test_a_node_of_another_host_that_is_silent():
    atomic = Wait("atomic", 5, "next", OLD, pid(0), asked=(1,))
    sentence = one(node(0, [worker(0, atomic)]), silent=(SilentNode(1, "10.0.0.2:7000"),))
    assert sentence == (
        "node 1 (10.0.0.2:7000) does not answer: stopped, or cut off; it decides about atomic 'next': "
        "rank 0 waits for it"
    )


def test_a_silent_holder_of_a_page():
    under_way = Transaction(1, 3, 1, True, 0, (2,))
    silent = (SilentNode(2, "h:2"),)
    sentence = one(node(0, [worker(0, page_wait(0, 3))]), node(1, transactions=(under_way,)), silent=silent)
    assert sentence.startswith("node 2 (h:2) does not answer") and "rank 0 waits" in sentence


def test_a_silent_node_may_keep_the_missing_ranks():
    present = node(0, [worker(0, barrier_wait(0))], objects=(barrier((party(0, 0),), 3),))
    sentence = one(present, silent=(SilentNode(1, "h:1"),))
    assert "it keeps workers that are missing from the barrier of the job: rank 0 waits for it" in sentence


def test_a_worker_that_does_not_let_go_of_a_page():
    wanted = Demand(1, 3, 1, True, 0, (1,))
    holder = WorkerStatus(1, 1, 101, "T", 0.1)
    sentence = one(node(0, [worker(0, page_wait(0, 3))]), node(1, [holder], demands=(wanted,)))
    assert sentence.startswith(
        "rank 1 (pid 101, node 1) has page 3 of region 'grid' mapped and does not let go"
    )
    assert "`kill -CONT 101`" in sentence


@pytest.mark.parametrize("write", [True, False])
def test_a_pin_in_the_way(write):
    wanted = Demand(1, 0, 8, True, 0)
    pin = PinStatus(1, 1, 4, 2, write, 12.0)
    sentence = one(
        node(0, [worker(0, page_wait(0, 5))]), node(1, [worker(1)], demands=(wanted,), pins=(pin,))
    )
    assert "rank 1 (pid 101, node 1) holds a pin on pages 4 to 5 of region 'grid' since 12 s" in sentence


def test_pins_that_hold_nothing_back_are_not_accused():
    read_only = PinStatus(1, 1, 5, 1, False, 12.0)
    elsewhere = PinStatus(1, 1, 6, 1, True, 12.0)
    wanted = Demand(1, 5, 1, False, 0)
    sentence = one(
        node(0, [worker(0, page_wait(0, 5, kind="read"))]),
        node(1, [worker(1)], demands=(wanted,), pins=(read_only, elsewhere)),
    )
    assert "nobody is known to keep it waiting" in sentence


def test_a_pin_that_waits_holds_what_it_has():
    wanted = Demand(1, 0, 1, True, 0)
    held = PinStatus(1, 1, 0, 4, True, 0.0, granted=False)
    stopped = Demand(1, 6, 1, True, 1, (2,))
    workers = [worker(1, page_wait(1, 0, kind="pin", count=8)), WorkerStatus(2, 2, 102, "T", 0.0)]
    sentences = verdict(
        cluster(
            node(0, [worker(0, page_wait(0, 0))]),
            node(1, workers, demands=(wanted, stopped), pins=(held,)),
        )
    )
    assert any(
        s.startswith("rank 2 (pid 102, node 1) has page 6") and "rank 1 waits for it, and rank 0" in s
        for s in sentences
    )


def test_a_region_that_its_creator_has_not_filled():
    opening = Wait("open", 0, "grid", OLD, pid(0), asked=(0,))
    creating = Unready(4, "grid", 0, 1)
    workers = [worker(0, opening), worker(1, state="T")]
    assert one(node(0, workers, unready=(creating, Unready(5, "other", 0, 0)))).startswith(
        "rank 1 (pid 101, node 0) has created region 'grid' and not filled it yet and is stopped (SIGSTOP): "
        "rank 0 waits for it"
    )
    sentence = one(node(0, [worker(0, opening)]), silent=(SilentNode(1, "h:1"),))
    assert "it has to hear of opening region 'grid': rank 0 waits for it" in sentence


def test_a_creator_does_not_wait_for_itself():
    """Other nodes have to hear of its region before it may fill it."""
    opening = Wait("open", 0, "grid", OLD, pid(0), asked=(0,))
    sentence = one(
        node(0, [worker(0, opening)], unready=(Unready(4, "grid", 0, 0),)), silent=(SilentNode(1, "h:1"),)
    )
    assert "it has to hear of opening region 'grid': rank 0 waits for it" in sentence


def test_short_waits_and_idle_stops():
    workers = [worker(0, lock_wait(0, "a", 1, since_s=0.01)), worker(1, state="R")]
    objects = (lock(1, "a", party(0, 1, since_s=0.02)),)
    assert one(node(0, workers, objects=objects)).startswith("nothing stands still")
    assert len(verdict(cluster(node(0, workers, objects=objects)), patience_s=0.001)) == 1
    assert one(node(0, [worker(0, state="T")])) == (
        "rank 0 (pid 100, node 0) is stopped (SIGSTOP): nobody is known to wait for it; "
        "`kill -CONT 100` lets it go on"
    )


def test_a_holder_whose_worker_is_gone():
    objects = (lock(1, "a", party(0, 7)),)
    sentence = one(node(0, [worker(0, lock_wait(0, "a", 1))], objects=objects))
    assert sentence.startswith("worker 7 of node 0 holds lock 'a' since 30 s and is no worker any more")


def test_tables_are_aligned_and_names_cannot_move_the_cursor():
    objects = (lock(1, "a\x1b[2J\nb", party(0, 1)), lock(2, "long enough", None), barrier((party(0, 0),), 2))
    value = cluster(node(0, [worker(0, barrier_wait(0)), worker(1)], objects=objects))
    text = render(value)
    assert "\x1b" not in text
    lines = text.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("lock "))
    assert lines[at + 1].startswith(r"a\x1b[2J\nb")
    assert len({line.index("0   ") for line in lines[at + 1 : at + 3]}) == 1
    assert any(line.startswith("of the job") and line.endswith("rank 1") for line in lines)


def test_words():
    assert [seconds(t) for t in (0.04, 9.96, 41.4, 125, 8000)] == [
        "0.0 s",
        "10.0 s",
        "41 s",
        "2 min 5 s",
        "2 h 13 min",
    ]
    assert enumerate_words(["a"]) == "a" and enumerate_words(["a", "b", "c"]) == "a, b and c"


def wait_for(kind, rank, name, number, since_s=OLD, token=1):
    return Wait(kind, number, name, since_s, pid(rank), token=token, asked=(0,))


def test_every_reader_keeps_a_writer_waiting_and_the_readers_behind_it():
    table = ObjectStatus(
        1,
        "rwlock",
        "table",
        0,
        waiting=(party(0, 2), party(0, 3)),
        holders=(party(0, 0), party(0, 1)),
        readers=1,
    )
    workers = [worker(0, state="T"), worker(1, state="R")]
    workers += [worker(rank, wait_for("rwlock", rank, "table", 1)) for rank in (2, 3)]
    status = cluster(node(0, workers, objects=(table,)))
    stopped, running = verdict(status)
    assert stopped.startswith(
        "rank 0 (pid 100, node 0) holds rwlock 'table' for reading since 30 s and is stopped"
    )
    assert running.startswith("rank 1 (pid 101, node 0) holds rwlock 'table' for reading since 30 s and runs")
    assert "ranks 2 and 3 wait for it" in stopped and "ranks 2 and 3 wait for it" in running
    text = render(status)
    assert "read: rank 0 (pid 100, node 0), rank 1 (pid 101, node 0)  30 s   2 (30 s)      3 (30 s)" in text


def test_who_holds_a_rwlock_alone_keeps_everybody_waiting():
    table = ObjectStatus(1, "rwlock", "table", 0, party(0, 0), (party(0, 1),), damaged=False)
    workers = [worker(0, state="T"), worker(1, wait_for("rwlock", 1, "table", 1))]
    assert "holds rwlock 'table' since 30 s and is stopped" in one(node(0, workers, objects=(table,)))


def test_two_readers_that_both_want_to_write_elsewhere_are_a_deadlock():
    objects = (
        ObjectStatus(1, "rwlock", "a", 0, waiting=(party(0, 1),), holders=(party(0, 0),)),
        ObjectStatus(2, "rwlock", "b", 0, waiting=(party(0, 0),), holders=(party(0, 1),)),
    )
    workers = [worker(0, wait_for("rwlock", 0, "b", 2)), worker(1, wait_for("rwlock", 1, "a", 1))]
    assert "rwlock 'b', which rank 1 holds" in one(node(0, workers, objects=objects))


def test_who_has_the_units_of_a_bounded_semaphore():
    units = ObjectStatus(1, "semaphore", "gpu", 0, waiting=(party(0, 1),), holders=(party(0, 0, token=0),))
    workers = [worker(0, state="T"), worker(1, wait_for("semaphore", 1, "gpu", 1))]
    assert "rank 0 (pid 100, node 0) has units of semaphore 'gpu' and is stopped" in one(
        node(0, workers, objects=(units,))
    )


def test_of_many_who_have_units_those_are_named_that_do_not_wait_themselves():
    holders = (party(0, 0, token=0), party(0, 1, token=0))
    units = ObjectStatus(1, "semaphore", "gpu", 0, waiting=(party(0, 2),), holders=holders)
    mine = ObjectStatus(2, "lock", "mine", 0, party(0, 2), (party(0, 0),))
    workers = [
        worker(0, wait_for("lock", 0, "mine", 2)),
        worker(1),
        worker(2, wait_for("semaphore", 2, "gpu", 1)),
    ]
    sentence = one(node(0, workers, objects=(units, mine)))
    assert sentence.startswith(
        "rank 1 (pid 101, node 0) has units of semaphore 'gpu' and is not waiting in dsm"
    )
    assert "rank 2 waits for it, and rank 0 waits for those" in sentence


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("event", "waits for event 'x' since 30 s, which nobody has set"),
        ("condition", "waits for condition 'x' since 30 s, of which nobody has notified it"),
        ("semaphore", "waits for semaphore 'x' since 30 s, which has too few free units; who is to release"),
    ],
)
def test_waits_that_nobody_can_be_blamed_for(kind, text):
    it = ObjectStatus(1, kind, "x", 0, waiting=(party(0, 0),))
    assert text in one(node(0, [worker(0, wait_for(kind, 0, "x", 1))], objects=(it,)))


def test_who_was_notified_waits_for_the_lock():
    objects = (
        ObjectStatus(1, "condition", "full", 0, value=2),
        ObjectStatus(2, "lock", "pool", 0, party(0, 1), (party(0, 0),)),
    )
    workers = [worker(0, wait_for("condition", 0, "full", 1)), worker(1, state="T")]
    sentence = one(node(0, workers, objects=objects))
    assert sentence.startswith("rank 1 (pid 101, node 0) holds lock 'pool' since 30 s and is stopped")


def test_the_tables_of_all_kinds():
    objects = (
        ObjectStatus(1, "semaphore", "units", 0, waiting=(party(0, 0),), value=2),
        ObjectStatus(2, "lock", "pool", 0),
        ObjectStatus(3, "condition", "full", 0, waiting=(party(0, 0),), value=2),
        ObjectStatus(4, "event", "go", 0, waiting=(party(0, 0),)),
        ObjectStatus(5, "atomic", "dsm.fence", 0),
    )
    lines = render(cluster(node(0, [worker(0)], objects=objects))).splitlines()
    assert "units      0     2     -        0 (30 s)" in lines
    assert "full       0     pool  0 (30 s)" in lines
    assert "go     0     no   0 (30 s)" in lines
    assert not any("dsm.fence" in line for line in lines)


def fenced(rank, wait):
    return worker(rank, msgspec.structs.replace(wait, fenced=True))


def test_who_has_come_and_waits_for_its_node_is_not_missing():
    first = node(0, [fenced(0, barrier_wait(0, "all"))], fencing=Fencing(nodes=(2,)))
    second = node(1, [worker(1, barrier_wait(1, "all"))], objects=(barrier((party(1, 1),), 2, "all"),))
    sentence = one(first, second, silent=(SilentNode(2, "h:2"),))
    assert "it has not acknowledged what node 0 has written: rank 0 waits for it, and rank 1" in sentence


def test_a_stopped_worker_keeps_its_node_from_releasing():
    stopped = WorkerStatus(1, 1, 101, "T", 0.1)
    sentence = one(node(0, [fenced(0, barrier_wait(0, "all")), stopped], fencing=Fencing(workers=(1,))))
    assert sentence.startswith(
        "rank 1 (pid 101, node 0) has pages mapped that node 0 is to release or give up"
    )
    assert "rank 0 waits for it" in sentence and "`kill -CONT 101`" in sentence


def test_a_pin_keeps_its_node_from_acquiring():
    pin = PinStatus(1, 1, 4, 2, True, 12.0)
    waiting = fenced(0, lock_wait(0, "best", 7))
    sentence = one(node(0, [waiting, worker(1)], pins=(pin,), fencing=Fencing(pinned=True)))
    assert "rank 1 (pid 101, node 0) holds a pin on pages 4 to 5 of region 'grid' since 12 s" in sentence


def test_a_lock_that_its_node_has_yet_to_release_is_not_its_holders_fault():
    held = lock(7, "best", party(0, 0), (party(1, 1),))
    first = node(0, [worker(0)], fencing=Fencing(nodes=(2,), released=(7,)), objects=(held,))
    second = node(1, [worker(1, lock_wait(1, "best", 7))])
    sentence = one(first, second, silent=(SilentNode(2, "h:2"),))
    assert "has not acknowledged what node 0 has written: rank 1 waits for it" in sentence


def test_a_release_that_takes_long_accuses_nobody():
    sentence = one(node(0, [fenced(0, barrier_wait(0, "all"))], fencing=Fencing(nodes=(2, 3))))
    assert sentence.endswith("and its node is releasing or acquiring memory first (asked: node 2 and 3)")


@pytest.mark.parametrize("fencing", [None, Fencing(nodes=(2,))])
def test_a_node_that_answers_and_owes_a_release_for_a_lent_lock_is_no_silent_one(fencing):
    lent = msgspec.structs.replace(lock(7, "best", None, (party(0, 0),)), lent=1)
    first = node(0, [worker(0, lock_wait(0, "best", 7))], objects=(lent,))
    found = verdict(cluster(first, node(1, fencing=fencing), silent=(SilentNode(2, "h:2"),)))
    if fencing is None:
        assert "rank 0 (pid 100, node 0) waits for lock 'best' since 30 s" in found[1]
    else:
        assert found == [
            "node 2 (h:2) does not answer: stopped, or cut off; it has not acknowledged what node 1 has "
            "written: rank 0 waits for it"
        ]
