"""Children of fork: attached by themselves, old arrays valid, the parent undisturbed."""

import os

import pytest

PROGRAM_HEAD = """
import os, sys, threading, time
import numpy as np
import dsm
node = dsm.attach()
a = node.array("forked", 100_000)
a[:] = 1

def child(function):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
"""


def run(run_worker, body, **options):
    result = run_worker(PROGRAM_HEAD + body, **options)
    assert (result.stdout.splitlines()[-1:], result.returncode) == (["done"], 0), (
        result.stdout + result.stderr
    )
    assert "could not attach" not in result.stderr
    return result


def test_a_child_reads_and_writes_the_same_memory(run_worker):
    run(
        run_worker,
        """
def work():
    assert a.sum() == 100_000
    a[5] = 7
    assert dsm.attach() is node
    assert node.rank != rank, (node.rank, rank)
    b = node.array("by-child", 10)
    b[:] = 3
rank = node.rank
child(work)
assert a[5] == 7
assert node.open("by-child").sum() == 30
print("done")
""",
    )


def test_a_child_has_primitives_of_its_own(run_worker):
    run(
        run_worker,
        """
lock, n = node.lock("l"), node.atomic("n")
def work():
    try:
        lock.release()
    except dsm.NotOwnerError:
        pass
    else:
        raise AssertionError("a child owns its parent's lock")
    assert lock.acquire(timeout=0.05) is False
    n.fetch_add()
with lock:
    child(work)
    child(work)
assert n.load() == 2
print("done")
""",
    )


def test_generations_and_threads(run_worker):
    run(
        run_worker,
        """
stop = threading.Event()
def touch():
    while not stop.is_set():
        a[::512] += 1
        node.atomic("busy").fetch_add()
threads = [threading.Thread(target=touch) for _ in range(2)]
for thread in threads: thread.start()
def grandchild():
    a[-1] = 99
def work():
    child(grandchild)
    with node.lock("inner"):
        a[-2] = 98
for _ in range(5):
    child(work)
stop.set()
for thread in threads: thread.join()
assert a[-2:].tolist() == [98, 99]
print("done")
""",
    )


def test_errors_reach_a_child(run_worker):
    run(
        run_worker,
        """
def work():
    node.close()
    try:
        a.sum()
        raise AssertionError("nothing was raised")
    except dsm.ClosedError:
        pass
    with dsm.attach() as again:
        assert again.open("forked")[0] == 1
        assert a[0] == 1
child(work)
assert a[0] == 1
print("done")
""",
    )


def test_a_child_leaves_the_parents_descriptors_alone(run_worker):
    run(
        run_worker,
        """
def count():
    return len(os.listdir("/proc/self/fd"))
before = count()
def work():
    assert count() == before, (count(), before)
for _ in range(3):
    child(work)
assert count() == before
assert a.sum() == 100_000
node.array("after", 5)[:] = 1
print("done")
""",
    )


def test_a_region_destroyed_while_forking_is_closed_in_the_child(run_worker):
    run(
        run_worker,
        """
b = node.array("gone", 10)
b[:] = 1
node.destroy("gone")
def work():
    try:
        b.sum()
        raise AssertionError("nothing was raised")
    except (dsm.ClosedError, dsm.NodeLostError):
        pass
    assert a.sum() == 100_000
child(work)
print("done")
""",
    )


def test_a_child_of_a_lost_node_gets_errors_not_values(private, run_worker):
    result = run_worker(
        PROGRAM_HEAD
        + """
os.kill(node._connection.attached.manager_pid, 9)
while not node.lost:
    time.sleep(0.01)
def work():
    for use in (lambda: a.sum(), lambda: float(a[0])):  # without and with the interpreter's lock
        try:
            use()
            raise AssertionError("nothing was raised")
        except (dsm.ClosedError, dsm.NodeLostError):
            pass
child(work)
print("done")
""",
        env={"DSM_NODE": ""},
    )
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr
    assert "could not attach" in result.stderr


def test_subprocess_is_not_disturbed(node):
    import subprocess

    a = node.array(None, 1000)
    a[:] = 1
    for _ in range(3):
        assert subprocess.run(["/bin/true"], check=False, preexec_fn=os.getpid).returncode == 0
    assert a.sum() == 1000


@pytest.mark.parametrize("method", ["system", "spawn"])
def test_other_ways_to_start_programs(node, method):
    a = node.array(None, 1000)
    if method == "system":
        assert os.system("true") == 0
    else:
        assert os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)[1] == 0
    a[:] = 2
    assert a.sum() == 2000


def test_a_child_is_told_why_what_its_parent_destroyed_is_closed(run_worker):
    run(
        run_worker,
        """
gone = node.array("gone", 10)
gone.sum()
node.destroy("gone")
def work():
    try:
        gone.sum()
        raise AssertionError
    except dsm.ClosedError:
        pass
    assert a.sum() == 100_000
child(work)
print("done")
""",
    )
