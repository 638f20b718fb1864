"""`dsm status` names the culprit of jobs that were made to stand still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from dsm.cli import status
from dsm.cli.status import ask
from dsm.cli.status.verdict import verdict
from dsm.manager.gathering import COLLECT_S
from dsm.proc import process_state
from dsm.testing import Cluster
from dsm.testing.cluster import ManagerProcess
from dsm.types import RegionOptions
from launched import Launched
from support import managers, wait_until, wait_value, waits_in_futex


def _hold_lock(node, name):
    node.lock(name).acquire()


def _read(node, name):
    node.rwlock(name).acquire_read()


def _open_table(node, name):
    node.rwlock(name)


def _write_table(node, name):
    node.rwlock(name).acquire_write()


def _wait_for_notification(node, name):
    with node.condition(name) as condition:
        condition.wait()


def _hold_then_want(node, mine, other):
    node.lock(mine).acquire()
    node.barrier("both hold", parties=2)
    node.lock(other).acquire()


def _wait_for_all(node):
    node.barrier()


def _do_something_else(node):
    signal.pause()


def _write(node, value):
    node.array("shared", 512, "i8")[:] = value


def _hold_pin(node):
    node.held = node.pin(node.array("shared", 512, "i8"), write=True)
    node.held.__enter__()


def _create_and_stop(node):
    node._regions.create(RegionOptions(4096, "late"), ready=False)
    os.kill(os.getpid(), signal.SIGSTOP)


def _open(node, name):
    node.open(name)


@pytest.fixture
def stuck():
    """Return a function that starts a cluster; its processes are killed, for they would not end by asking."""
    started = []

    def start(nodes=2, workers=1):
        started.append(Cluster(nodes, workers))
        return started[-1]

    yield start
    for cluster in started:
        for worker in cluster.workers:
            worker.process.kill()
        for manager in cluster.managers:
            manager.process.send_signal(signal.SIGCONT)
        cluster.close()


def _dsm(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "dsm", "status", *words],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def _said(cluster, *texts, manager=0):
    """Wait until one sentence of the verdict has all of these texts; return what `dsm status` prints then."""
    address = cluster.managers[manager].socket

    def look():
        return any(
            all(text in sentence for text in texts)
            for each in ask.look(address).clusters
            for sentence in verdict(each)
        )

    wait_until(look, 15, f"a verdict with {texts}")
    printed = _dsm(address)
    assert printed.returncode == 0, printed.stderr
    assert any(all(text in line for text in texts) for line in printed.stdout.splitlines()), printed.stdout
    return printed.stdout


def test_a_stopped_holder_of_a_lock_is_named(stuck):
    cluster = stuck(nodes=2, workers=2)
    holder = cluster.workers[2]
    holder.call(_hold_lock, "best")
    for rank in (0, 1, 3):
        cluster.workers[rank].start(_hold_lock, "best")
    holder.kill(signal.SIGSTOP)
    printed = _said(
        cluster,
        f"rank 2 (pid {holder.pid}, node 1) holds lock 'best' since",
        "and is stopped (SIGSTOP): ranks 0, 1 and 3 wait for it",
        f"`kill -CONT {holder.pid}` lets it go on",
    )
    assert f"rank 2 (pid {holder.pid}, node 1)  " in printed
    holder.kill(signal.SIGCONT)


def test_a_stopped_reader_that_keeps_a_writer_waiting_is_named(stuck):
    cluster = stuck(nodes=2, workers=2)
    reader, other, writer, late = cluster.workers
    for worker in (reader, other):
        worker.call(_read, "table")
    writer.call(_open_table, "table")  # that is a wait, too
    writer.start(_write_table, "table")
    wait_until(lambda: waits_in_futex(writer.pid))
    late.start(_read, "table")
    reader.kill(signal.SIGSTOP)
    _said(
        cluster,
        f"rank 0 (pid {reader.pid}, node 0) holds rwlock 'table' for reading since",
        "and is stopped (SIGSTOP): ranks 2 and 3 wait for it",
    )
    reader.kill(signal.SIGCONT)


def test_who_waits_to_be_notified_is_said(stuck):
    cluster = stuck(nodes=2)
    cluster.workers[1].start(_wait_for_notification, "full")
    printed = _said(cluster, "rank 1", "waits for condition 'full' since", "nobody has notified it")
    assert "dsm.condition.full" in printed


def test_a_deadlock_of_two_locks_is_named(stuck):
    cluster = stuck()
    first, second = cluster.workers
    first.start(_hold_then_want, "a", "b")
    second.start(_hold_then_want, "b", "a")
    _said(
        cluster,
        f"rank 0 (pid {first.pid}, node 0) and rank 1 (pid {second.pid}, node 1)",
        "wait for each other's locks 'b' and 'a': a deadlock",
    )


def test_a_rank_that_does_not_come_to_the_barrier_is_named(stuck):
    cluster = stuck(nodes=2, workers=2)
    late = cluster.workers[1]
    late.start(_do_something_else)
    for rank in (0, 2, 3):
        cluster.workers[rank].start(_wait_for_all)
    printed = _said(
        cluster,
        f"rank 1 (pid {late.pid}, node 0) is missing from the barrier of the job (3 of 4 have come",
        "and is not waiting in dsm: it sleeps, or is in a system call",
        "ranks 0, 2 and 3 wait for it",
    )
    [line] = [line for line in printed.splitlines() if line.startswith("of the job")]
    assert "3 of 4" in line and "rank 1" in line


def test_a_stopped_manager_is_named_whoever_is_asked(stuck):
    cluster = stuck()
    stopped = cluster.managers[1]
    cluster.workers[1].call(_write, 1)
    stopped.process.send_signal(signal.SIGSTOP)
    cluster.workers[0].start(_write, 2)
    texts = (f"node 1's manager (pid {stopped.pid}) is stopped (SIGSTOP)", "rank 0 waits for it")
    _said(cluster, *texts)
    _said(cluster, *texts, f"`kill -CONT {stopped.pid}` lets it go on", manager=1)
    assert COLLECT_S < 2 < ask.ANSWER_S
    printed = _dsm(cluster.managers[0].socket).stdout
    assert f"@dsm-{stopped.socket.removeprefix('@dsm-')}  {stopped.pid}" in printed


def test_a_stopped_worker_that_has_the_page_is_named(stuck):
    cluster = stuck()
    holder, waiter = cluster.workers
    holder.call(_write, 1)
    holder.kill(signal.SIGSTOP)
    wait_until(lambda: process_state(holder.pid).letter == "T")
    waiter.start(_write, 2)
    _said(
        cluster,
        f"rank 0 (pid {holder.pid}, node 0) has page 0 of region 'shared' mapped and does not let go",
        "is stopped (SIGSTOP): rank 1 waits for it",
    )


def test_the_holder_of_a_pin_is_named(stuck):
    cluster = stuck()
    holder, waiter = cluster.workers
    holder.call(_hold_pin)
    waiter.start(_write, 2)
    printed = _said(
        cluster,
        f"rank 0 (pid {holder.pid}, node 0) holds a pin on page 0 of region 'shared' since",
        "rank 1 waits for it",
    )
    [line] = [line for line in printed.splitlines() if line.split()[:2] == ["shared", "0+1"]]
    assert f"rank 0 (pid {holder.pid})" in line and "write" in line


def test_who_has_not_filled_a_region_is_named(stuck):
    cluster = stuck()
    creator, waiter = cluster.workers
    creator.start(_create_and_stop)
    wait_until(lambda: process_state(creator.pid).letter == "T")
    waiter.start(_open, "late")
    printed = _said(
        cluster,
        f"rank 0 (pid {creator.pid}, node 0) has created region 'late' and not filled it yet",
        "is stopped (SIGSTOP): rank 1 waits for it",
    )
    assert "open 'late' since" in printed


def test_a_job_that_goes_on_is_not_accused():
    with Cluster(2) as cluster:
        cluster.all(_write, 1)
        [found] = ask.look(cluster.managers[0].socket).clusters
        [sentence] = verdict(found)
        assert sentence.startswith("nothing stands still")
        assert [region.name for region in found.nodes[0].regions] == ["shared"]
        assert sum(node.regions[0].exclusive for node in found.nodes) == 1
        assert [len(node.workers) for node in found.nodes] == [1, 1]


def test_the_only_manager_stopped_is_not_waited_for(monkeypatch):
    manager = ManagerProcess("s" * 16, [], None)
    try:
        manager.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: process_state(manager.pid).letter == "T")
        monkeypatch.setattr(ask, "ANSWER_S", 3600.0)
        assert ask.ask(manager.socket).pid == manager.pid
        printed = _dsm(manager.socket)
        assert printed.returncode == 0
        expected = f"(pid {manager.pid}) cannot be asked: stopped (SIGSTOP); `kill -CONT {manager.pid}`"
        assert expected in printed.stdout
        told = json.loads(_dsm(manager.socket, "--json").stdout)
        assert told["clusters"] == [] and told["silent"][0]["pid"] == manager.pid
    finally:
        manager.end()


def test_nobody_to_ask_is_status_1(monkeypatch, capsys):
    printed = _dsm("@dsm-nobody")
    assert printed.returncode == 1 and "no manager answers at @dsm-nobody" in printed.stderr
    monkeypatch.setattr(ask, "manager_sockets", dict)
    assert status._once(None, False, False) == 1
    assert "no dsm cluster runs on this machine" in capsys.readouterr().err


def test_a_private_node_is_found_by_its_variable():
    program = (
        "import dsm, sys, os; n = dsm.attach(); print(os.environ['DSM_NODE'], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        said = process.stdout.readline().strip()
        assert said.startswith("private:@dsm-")
        told = json.loads(_dsm("--json", DSM_NODE=said).stdout)
        [cluster] = told["clusters"]
        [worker] = cluster["nodes"][0]["workers"]
        assert worker["pid"] == process.pid and cluster["nodes"][0]["ranks"] == 0
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_job_of_several_nodes_is_shown_once(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import dsm, sys\nnode = dsm.attach()\nnode.barrier()\nprint('there')\nsys.stdin.read()\n"
        "node.barrier()\n"
    )
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "dsm", "run", "-n", "2", "--nodes", "2", str(script)]
    run = Launched(command, tmp_path, {}, stdin=reading)
    try:
        os.close(reading)
        run.wait_printed("there", 2)
        pids = set(managers())

        def views():
            return [c for c in ask.look(None).clusters if pids & {node.pid for node in c.nodes}]

        [cluster] = wait_value(views)
        assert {node.pid for node in cluster.nodes} == pids and len(pids) == 2
        assert "2 nodes, 2 workers" in status.render(cluster)
        os.close(writing)
        assert run.status() == 0
    finally:
        run.stop()


def test_watching_goes_on_until_it_is_interrupted():
    with Cluster(1) as cluster:
        command = [
            sys.executable,
            "-m",
            "dsm",
            "status",
            cluster.managers[0].socket,
            "--json",
            "--watch",
            "0.05",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
            watching.send_signal(signal.SIGINT)
            assert watching.wait(20) == 0
        times = [line["clusters"][0]["nodes"][0]["uptime_s"] for line in lines]
        assert times == sorted(times) and times[0] < times[2]
    assert _dsm("--watch", "0").returncode == 2


def test_a_name_that_the_terminal_cannot_show_is_escaped():
    with Cluster() as cluster:
        cluster.workers[0].call(_hold_lock, "naïve")
        shown = _dsm(cluster.managers[0].socket, PYTHONIOENCODING="ascii")
    assert "na\\xefve" in shown.stdout, shown.stderr


def test_output_that_nobody_reads_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    with Cluster() as cluster:
        command = [sys.executable, "-m", "dsm", "status", cluster.managers[0].socket]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_address_of_a_connection_is_written_as_the_kernel_writes_it():
    assert ask._hexadecimal("127.0.0.1:80") == "0100007F:0050"
    assert ask._hexadecimal("[::1]:65535") == "00000000000000000000000001000000:FFFF"
