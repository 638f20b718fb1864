"""What others meet at locks and barriers when a worker, a rank or a node of the cluster dies."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
import textwrap

import pytest

import dsm
from dsm.testing import Cluster
from dsm.testing.cluster import ManagerProcess
from dsm.types import JOB_BARRIER
from support import wait_until, wait_value, waits_in_futex

#: Seconds within which a wait that cannot be fulfilled must have ended.
SOON_S = 10
ITEMS = 512


def kill(process):
    """Kill a worker or manager, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    process.process.wait()


# ---- functions that workers run --------------------------------------------------------------------


def home_of(node, kind, name, value=0):
    return node._objects.get(kind, name, value).home


def name_at(node, kind, home, value=0):
    """Return a name of which an object of that kind has its home on that node."""
    names = (f"{kind} {number}" for number in range(1000))
    return next(name for name in names if home_of(node, kind, name, value) == home)


def write_under_lock(node, name, value):
    with node.lock(name):
        node.array("protected", (64, ITEMS), "i8")[:] = value


def write_half_and_hang(node, name, value):
    """Begin a change of 64 pages under the lock; never end it."""
    node.lock(name).acquire()
    pages = node.array("protected", (64, ITEMS), "i8")
    pages[:32] = value
    node.atomic("half").store(1)
    signal.pause()


def see_half(node):
    return node.atomic("half").load() == 1


def repair(node, name, value):
    """Take the lock over, finish the change; return what was there and what the error said."""
    lock = node.lock(name)
    try:
        with lock:
            return None
    except dsm.OwnerDiedError as error:
        said = str(error)
    pages = node.array("protected", (64, ITEMS), "i8")
    found = sorted({(row // 32, int(item)) for row in range(64) for item in set(pages[row].tolist())})
    pages[:] = value
    lock.consistent()
    with lock:
        return found, said


def read_under_lock(node, name):
    with node.lock(name):
        return sorted(set(node.array("protected", (64, ITEMS), "i8").ravel().tolist()))


def acquire(node, name):
    return node.lock(name).acquire()


def release(node, name):
    node.lock(name).release()


def acquire_and_release(node, name):
    with node.lock(name):
        return True


def meet(node, name=None, parties=None):
    return node.barrier(name, parties)


def meet_or_say(node, name=None, parties=None):
    try:
        return node.barrier(name, parties)
    except dsm.BrokenBarrierError as error:
        return str(error)


def meet_often(node, name, parties, rounds):
    for _ in range(rounds):
        node.barrier(name, parties)


def reset_and_meet(node, name=None, parties=None):
    node.reset_barrier(name, parties)
    return meet_or_say(node, name, parties)


def use_lock(node, name):
    return node.lock(name).acquire(timeout=5)


def count(node, name):
    return node.atomic(name).fetch_add()


def close(node):
    node.close()


def waits(worker):
    """Whether a worker waits for its manager (it must have opened the object before: that is a wait, too)."""
    return waits_in_futex(worker.pid)


# ---- locks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "workers"), [(1, 3), (2, 2)])
def test_the_next_owner_sees_all_that_a_killed_one_wrote(nodes, workers):
    with Cluster(nodes, workers) as cluster:
        first, *others, last = cluster.workers
        first.call(write_under_lock, "state", 1)
        first.start(write_half_and_hang, "state", 2)
        wait_until(lambda: others[0].call(see_half))
        after = last.start(repair, "state", 3)
        kill(first)
        found, said = after.result(SOON_S)
        assert found == [(0, 2), (1, 1)]
        assert "rank 0 on node 0 died while it held it" in said
        assert others[0].call(read_under_lock, "state") == [3], "told once"


def test_a_worker_that_is_killed_while_it_waits_for_a_lock_does_not_get_it():
    with Cluster(nodes=2, workers=2) as cluster:
        holder, other, victim, last = cluster.workers
        name, barrier = holder.call(name_at, "lock", 0), holder.call(name_at, "barrier", 0, 2)
        holder.call(acquire, name)
        met = victim.start(meet, barrier, 2)
        holder.call(meet, barrier, 2)
        met.result(SOON_S)
        victim.call(home_of, "lock", name)
        victim.start(acquire_and_release, name)
        wait_until(lambda: waits(victim))
        ends = [worker.start(acquire_and_release, name) for worker in (other, last)]
        waiting = holder.start(meet_or_say, barrier, 2)
        kill(victim)
        # Until its death is known there it may get the lock, and die as its owner.
        assert "rank 2 on node 1 died" in waiting.result(SOON_S)
        holder.call(release, name)
        assert [end.result(SOON_S) for end in ends] == [True, True]


def test_a_lock_that_a_killed_node_s_worker_held_is_told_with_the_node():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        name = first.call(name_at, "lock", 0)
        second.call(acquire, name)
        waiting = first.start(acquire, name)
        wait_until(lambda: waits(first))
        kill(cluster.managers[1])
        with pytest.raises(dsm.OwnerDiedError, match=r"node 1 died, whose worker held it.*consistent\(\)"):
            waiting.result(SOON_S)


def test_a_lock_and_an_atomic_whose_home_died_are_lost_by_name():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        lock, atomic = (first.call(name_at, kind, 1) for kind in ("lock", "atomic"))
        second.call(acquire, lock)
        first.call(count, atomic)
        waiting = first.start(acquire, lock)
        wait_until(lambda: waits(first))
        kill(cluster.managers[1])
        lost = "was kept by node 1, which is gone; use another name"
        with pytest.raises(dsm.PageLostError, match=f"{re.escape(repr(lock))}.*{lost}"):
            waiting.result(SOON_S)
        for name, use in ((lock, use_lock), (atomic, count)):
            with pytest.raises(dsm.PageLostError, match=f"{re.escape(repr(name))}.*{lost}"):
                first.call(use, name)
        assert first.call(use_lock, first.call(name_at_living, "lock", 0))


def name_at_living(node, kind, home):
    """As `name_at`, when some names are lost."""
    for number in range(1000):
        try:
            if home_of(node, kind, f"new {number}") == home:
                return f"new {number}"
        except dsm.PageLostError:
            continue
    return None


# ---- named barriers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "workers"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("where", ["inside", "between"])
def test_the_death_of_a_member_breaks_a_named_barrier(nodes, workers, where):
    with Cluster(nodes, workers) as cluster:
        futures = [worker.start(meet_often, "named", 3, 5) for worker in cluster.workers]
        assert [future.result() for future in futures] == [None] * 3
        *survivors, victim = cluster.workers
        waiting = survivors[0].start(meet_or_say, "named", 3)
        if where == "inside":
            victim.start(meet, "named", 3)
            wait_until(lambda: waits(victim) and waits(survivors[0]))
        kill(victim)
        # Who had arrived counts until its death is known: the other one comes after that.
        died = f"rank 2 on node {nodes - 1} died"
        assert died in waiting.result(SOON_S)
        assert died in survivors[1].call(meet_or_say, "named", 3)
        assert "died" in survivors[0].call(meet_or_say, "named", 3), "nobody came in its place"


def test_a_barrier_whose_home_died_is_broken_for_those_who_wait_and_later():
    with Cluster(nodes=3) as cluster:
        first, second, _ = cluster.workers
        name = first.call(name_at, "barrier", 2, 2)
        waiting = first.start(meet_or_say, name, 2)
        second.call(home_of, "barrier", name, 2)
        wait_until(lambda: waits(first))
        kill(cluster.managers[2])
        lost = "was kept by node 2, which is gone; use another name"
        assert lost in waiting.result(SOON_S)
        for worker in (first, second):
            assert lost in worker.call(meet_or_say, name, 2)
            assert lost in worker.call(reset_or_say, name, 2)
        assert "kept by node 2, which is gone" in first.call(open_anew, name, 2)


def reset_or_say(node, name, parties):
    try:
        return node.reset_barrier(name, parties)
    except dsm.BrokenBarrierError as error:
        return str(error)


def open_anew(node, name, parties):
    """As a worker that has not used the barrier before."""
    node._objects._known.clear()
    return meet_or_say(node, name, parties)


POOL = """
    import multiprocessing, os, signal, sys
    import dsm

    def child(number, go):
        node = dsm.attach()
        node.barrier("pool", parties=3)
        go.send(number)
        if number:
            node.barrier("pool", parties=3)
        signal.pause()

    if __name__ == "__main__":
        node = dsm.attach()
        context = multiprocessing.get_context("fork")
        for turn in range(4):
            ends, children = [], []
            for number in range(3):
                here, there = context.Pipe()
                children.append(context.Process(target=child, args=(number, there)))
                children[-1].start()
                ends.append(here)
            for end in ends:
                assert end.poll(20), f"turn {turn}: the pool does not meet"
                end.recv()
            for each in children:
                each.kill()
            for each in children:
                each.join()
        print("met 4 times")
"""


def test_a_pool_that_was_killed_as_a_whole_may_come_again_with_the_same_barrier(tmp_path, monkeypatch):
    monkeypatch.delenv("DSM_NODE", raising=False)
    path = tmp_path / "pool.py"
    path.write_text(textwrap.dedent(POOL))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "met 4 times\n"), done.stderr


# ---- the barrier of all ranks ----------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "workers"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("how", ["killed", "closed"])
def test_the_end_of_a_rank_that_never_came_breaks_the_job_s_barrier(nodes, workers, how):
    with Cluster(nodes, workers) as cluster:
        *survivors, victim = cluster.workers
        survivors[0].call(home_of, "barrier", JOB_BARRIER, 3)
        waiting = survivors[0].start(meet_or_say)
        wait_until(lambda: waits(survivors[0]))
        if how == "killed":
            kill(victim)
        else:
            victim.call(close)
        ended = f"rank 2, which was on node {nodes - 1}, has ended"
        assert ended in waiting.result(SOON_S)
        for function in (meet_or_say, reset_and_meet):
            assert ended in survivors[1].call(function)
        assert ended in survivors[1].call(meet_or_say, "created only now"), "parties are all ranks here too"


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_rank_that_is_taken_again_mends_the_job_s_barrier(nodes):
    with Cluster(nodes, 2 // nodes) as cluster:
        first, second = cluster.workers
        assert sorted(cluster.all(meet)) == [0, 1]
        kill(second)
        wait_until(lambda: "has ended" in str(first.call(meet_or_say)))
        program = "import dsm; node = dsm.attach(); print('attached', flush=True); input(); node.barrier()"
        environment = {"DSM_NODE": cluster.managers[-1].socket, "DSM_RANK": "1", "DSM_SIZE": "2"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=os.environ | environment, **pipes
        ) as other:
            assert other.stdout.readline() == b"attached\n"
            waiting = first.start(meet)
            other.stdin.write(b"\n")
            other.stdin.close()
            assert waiting.result(SOON_S) in (0, 1)
            assert other.wait(SOON_S) == 0


def test_a_child_of_fork_is_not_its_rank():
    with Cluster(nodes=2) as cluster:
        first, second = cluster.workers
        assert second.call(fork_and_wait) == 0, "the end of a child is not the end of the rank"
        assert sorted(cluster.all(meet)) == [0, 1]
        second.start(fork_and_stay)
        (child,) = wait_value(lambda: children_of(second.pid))
        kill(second)
        wait_until(lambda: "rank 1, which was on node 1, has ended" in str(first.call(meet_or_say_soon)))
        os.kill(child, signal.SIGKILL)


def fork_and_wait(node):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_and_stay(node):
    if os.fork() == 0:
        prctl = ctypes.CDLL(None).prctl
        prctl(1, 0)  # PR_SET_PDEATHSIG: it outlives its parent
    signal.pause()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def meet_or_say_soon(node):
    try:
        return node.barrier(timeout=0.1)
    except dsm.WaitTimeoutError:
        node.reset_barrier()
    except dsm.BrokenBarrierError as error:
        return str(error)


ROUNDS = 40


def test_ranks_that_end_right_behind_the_last_barrier_do_not_break_it_for_the_others():
    secret = secrets.token_hex(32)
    options = ["--listen", "127.0.0.1:0", "--ranks", "3"]
    managers = [ManagerProcess(secret, options, None)]
    try:
        managers.append(ManagerProcess(secret, [*options, "--join", managers[0].listen], None))
        sockets = [managers[0].socket, managers[1].socket, managers[1].socket]
        program = [sys.executable, "-c", textwrap.dedent(LAST_BARRIER), str(ROUNDS), *sockets]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        for manager in reversed(managers):
            manager.end()


#: Ranks come, meet at a first barrier (the ranks of the last round may have gone only now), and end behind
#: the second one: a child that is told there that somebody has ended says so with its status.
LAST_BARRIER = """
    import os, sys
    import dsm
    from dsm import attach  # loaded once, not in each of the ranks

    def rank(number, address):
        os.environ.update(DSM_NODE=address, DSM_RANK=str(number), DSM_SIZE="3")
        node = attach()
        while True:
            try:
                node.barrier()
                break
            except dsm.BrokenBarrierError:
                continue
        node.barrier()

    for turn in range(int(sys.argv[1])):
        children = []
        for number, address in enumerate(sys.argv[2:]):
            pid = os.fork()
            if pid == 0:
                try:
                    rank(number, address)
                except BaseException as error:
                    os.write(2, f"round {turn}, rank {number}: {error!r}".encode())
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
"""


def test_who_was_stopped_while_its_manager_died_does_not_get_a_lock():
    """The grant stands in its memory: it came before the death, and by now the lock may be another's."""
    with Cluster(nodes=2, workers=2) as cluster:
        first, _, waiter, beside = cluster.workers
        name, counter = (first.call(name_at, kind, 0) for kind in ("lock", "atomic"))
        waiter.call(acquire_and_release, name)
        beside.call(count, counter)
        first.call(acquire, name)
        acquiring = waiter.start(acquire, name)
        wait_until(lambda: waits(waiter))
        os.kill(waiter.pid, signal.SIGSTOP)
        first.call(release, name)
        beside.call(count, counter)  # behind the grant, from the same home
        kill(cluster.managers[1])
        os.kill(waiter.pid, signal.SIGCONT)
        with pytest.raises(dsm.NodeLostError):
            acquiring.result(SOON_S)
