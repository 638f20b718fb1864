"""`dsm run` with real managers, parts of which are stopped or killed while pages cross between nodes."""

import contextlib
import os
import re
import signal
import sys
import time

import pytest

import support
from dsm.launch.processes import become_subreaper
from launched import Launched

DEADLINE_S = 1.0

#: Two pages go to and fro between the nodes, until a file appears; then all must have counted right.
EXCHANGE = """
import os, dsm
node = dsm.attach()
cells = node.array("cells", (2, 512), "i8", home="cyclic")
lock = node.lock("cells")
turns = 0
print("here", flush=True)
while not os.path.exists("enough"):
    with lock:
        cells[0, 0] += 1
        cells[1, 0] += 1
    turns += 1
total = node.atomic("turns")
total.fetch_add(turns)
node.barrier()
assert cells[0, 0] == cells[1, 0] == total.load()
print("counted", flush=True)
"""


@pytest.fixture
def run(tmp_path):
    started = []

    def start(*arguments, program, page_timeout_s=None, **options):
        (tmp_path / "program.py").write_text(program)
        words = [sys.executable, "-m", "dsm", "run", *map(str, arguments), "program.py"]
        environment = {} if page_timeout_s is None else {"DSM_PAGE_TIMEOUT": str(page_timeout_s)}
        started.append(Launched(words, tmp_path, environment, **options))
        return started[-1]

    yield start
    for launched in started:
        launched.stop()


def _pass_the_deadline():
    """Let more time pass than a page may take: that it passes is what is tested."""
    time.sleep(1.5 * DEADLINE_S)


def _ends_well(job, directory, ranks):
    (directory / "enough").touch()
    assert job.status() == 0, job.stderr
    assert job.stdout.count("counted") == ranks
    assert job.stderr == ""


def test_after_ctrl_z_for_longer_than_the_deadline_nobody_sees_an_error(run, tmp_path):
    job = run("-n", 4, "--nodes", 2, program=EXCHANGE, page_timeout_s=DEADLINE_S, process_group=0)
    job.wait_printed("here", 4)
    family = support.family()
    job.process.send_signal(signal.SIGTSTP)
    support.wait_until(lambda: all(support.state(pid) == "T" for pid in family), what="all are stopped")
    _pass_the_deadline()
    job.process.send_signal(signal.SIGCONT)
    _ends_well(job, tmp_path, 4)


def test_a_launcher_that_is_stopped_for_a_while_does_not_matter(run, tmp_path):
    job = run("-n", 4, "--nodes", 2, program=EXCHANGE, page_timeout_s=DEADLINE_S)
    job.wait_printed("here", 4)
    job.process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(job.pid) == "T")
    _pass_the_deadline()
    assert len(support.family()) == 7
    job.process.send_signal(signal.SIGCONT)
    _ends_well(job, tmp_path, 4)


def _is_worker(pid):
    return "program.py" in support.describe(pid) and " run " not in support.describe(pid)


def _stop(pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        support.wait_until(lambda pid=pid: support.state(pid) == "T")


@pytest.fixture
def adopting():
    """Make the tests adopt orphans.

    They are in the session of the launchers, as a supervisor may be: to the kernel no process group is
    orphaned then, and it sends no SIGHUP and SIGCONT to those that are stopped when a launcher dies.  On a
    busy machine it may not either way: when a thread of the group is still on its way into the stop.
    """
    adopted = set()
    become_subreaper(True)
    yield adopted.update
    become_subreaper(False)
    for pid in adopted:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)  # it should be gone
                os.waitpid(pid, 0)


def _kill_launcher(job, adopt):
    adopt(set(support.family()) - {job.pid})
    job.process.kill()
    job.status()
    support.wait_until(lambda: not support.family(), what="all processes are gone")


@pytest.mark.parametrize("what", ["worker", "manager", "everything"])
def test_the_death_of_the_launcher_ends_also_what_is_stopped(run, what, adopting):
    job = run("-n", 4, "--nodes", 2, program=EXCHANGE)
    job.wait_printed("here", 4)
    _stop(
        {
            "worker": [pid for pid in support.family() if _is_worker(pid)][:1],
            "manager": support.managers()[:1],
            "everything": [pid for pid in support.family() if pid != job.pid],
        }[what]
    )
    _kill_launcher(job, adopting)


#: Workers with children of their own, which nothing ties to anybody.
PARENTS = """
import subprocess, time, dsm
node = dsm.attach()
subprocess.Popen(["sleep", "1000"])
print("here", flush=True)
time.sleep(1000)
"""


def test_stopped_managers_end_what_workers_have_started(run, adopting):
    job = run("-n", 2, program=PARENTS)
    job.wait_printed("here", 2)
    _stop(pid for pid in support.family() if pid != job.pid)
    _kill_launcher(job, adopting)


GO_ON = """
import os, sys, time, dsm
node = dsm.attach()
own = node.array("own", (2, 512), "i8", home="block")
other = node.array("other", (2, 512), "i8", home=1)
if node.node_id == 1:
    other[:] = 1
if node.rank == 0:
    own[0] = 5
node.barrier()
print("here", flush=True)
while 1 in node.nodes:
    time.sleep(0.01)
lost = False
try:
    other[1].sum()
except dsm.PageLostError as error:
    lost = "node 1" in str(error) and "'other'" in str(error)
with node.lock("of those who live"):
    fresh = node.array("made later", 512, "i8")
    fresh[0] += 1
print("went on", lost, flush=True)
"""


def test_a_job_that_continues_goes_on_with_what_is_left(run):
    job = run("-n", 4, "--nodes", 2, "--on-failure", "continue", program=GO_ON)
    job.wait_printed("here", 4)
    # Ranks 2 and 3 are of node 1, whose manager listens last.
    managers = {pid for pid in support.managers() if "--join" in support.describe(pid)}
    os.kill(*managers, signal.SIGKILL)
    assert job.status() == 128 + signal.SIGKILL
    assert job.stdout.count("went on True") == 2
    assert job.stderr.count("NodeLostError") >= 2


#: A program that tries again, as the documentation says.
PATIENT = """
import os, dsm
node = dsm.attach()
cell = node.array("cells", 512, "i8")
lock = node.lock("cells")
turns = 0

def insist(access):
    while True:
        try:
            result = access()
            node.check()
            return result
        except dsm.PageTimeoutError:
            pass

print("here", flush=True)
while not os.path.exists("enough"):
    with lock:
        value = insist(lambda: int(cell[0])) + 1
        insist(lambda: cell.__setitem__(0, value))
    turns += 1
total = node.atomic("turns")
total.fetch_add(turns)
node.barrier()
assert insist(lambda: int(cell[0])) == total.load()
print("counted", flush=True)
"""


def test_a_stopped_worker_costs_a_patient_program_nothing_but_time(run, tmp_path):
    job = run("-n", 4, "--nodes", 2, program=PATIENT, page_timeout_s=DEADLINE_S)
    job.wait_printed("here", 4)
    worker = next(pid for pid in support.family() if _is_worker(pid))
    os.kill(worker, signal.SIGSTOP)
    support.wait_until(lambda: support.state(worker) == "T")
    _pass_the_deadline()
    os.kill(worker, signal.SIGCONT)
    _ends_well(job, tmp_path, 4)


def test_page_timeout_is_an_option_of_the_launcher(run, tmp_path):
    program = """
import os, time, dsm
node = dsm.attach()
words = node.array("words", 512, "i8", home=1)
if node.rank == 1:
    words[0] = 1
node.barrier()
print(f"here {os.getpid()} of rank {node.rank}", flush=True)  # in one piece
if node.rank == 0:
    while not os.path.exists("stopped"):
        time.sleep(0.01)
    started = time.monotonic()
    try:
        words.sum()
    except dsm.PageTimeoutError:
        print(f"after {time.monotonic() - started} s", flush=True)
else:
    time.sleep(1000)
"""
    job = run("--page-timeout", 0.5, "-n", 2, "--nodes", 2, program=program, page_timeout_s=1000)
    job.wait_printed(" of rank ", 2)
    worker = int(re.search(r"here (\d+) of rank 1", job.stdout)[1])
    os.kill(worker, signal.SIGSTOP)
    support.wait_until(lambda: support.state(worker) == "T")
    (tmp_path / "stopped").touch()
    job.wait_printed("after")
    assert float(job.stdout.split("after ")[1].split()[0]) >= 0.5
    job.process.send_signal(signal.SIGTERM)
    assert job.status() == 128 + signal.SIGTERM
