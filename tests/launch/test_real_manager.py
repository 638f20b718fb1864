"""`dsm run` and `dsm node` with real managers: what only shows when shared memory is really there."""

import os
import re
import signal
import subprocess
import sys

import pytest

import support
from launched import Launched

HELLO = """
import dsm
node = dsm.attach()
a = node.array("numbers", node.size, "i8")
a[node.rank] = 10 * node.rank + node.node_id
node.barrier()
print(node.rank, node.size, a.tolist(), flush=True)
"""


@pytest.fixture
def run(tmp_path):
    started = []

    def start(*arguments, program, verb=("run",), environment=None, **options):
        if program is not None:
            (tmp_path / "program.py").write_text(program)
            arguments = (*arguments, tmp_path / "program.py")
        words = [sys.executable, "-m", "dsm", *verb, *map(str, arguments)]
        started.append(Launched(words, tmp_path, environment or {}, **options))
        return started[-1]

    yield start
    for launched in started:
        launched.stop()


def test_all_see_the_same_memory(run):
    job = run("-n", 4, "--nodes", 2, program=HELLO)
    assert job.status() == 0
    assert sorted(job.stdout.splitlines()) == [f"{rank} 4 [0, 10, 21, 31]" for rank in range(4)]
    assert job.stderr == ""


def test_a_failure_beside_a_barrier_is_the_origin(run):
    job = run(
        "-n",
        4,
        "--nodes",
        2,
        program="import dsm\nnode = dsm.attach()\nnode.barrier()\n"
        "if node.rank == 3:\n    raise ValueError('the origin')\nnode.barrier()\n",
    )
    assert job.status() == 1
    assert job.stderr.endswith("ValueError: the origin\n")
    assert "rank 3 (node 1) failed first" in job.stderr


def test_ctrl_c_in_a_barrier(run):
    job = run(
        "-n",
        3,
        "--nodes",
        3,
        program=HELLO + "if node.rank: node.barrier()\nelse: input()\n",
        stdin=subprocess.PIPE,
    )
    job.wait_printed("[0, 11, 22]", 3)
    job.process.send_signal(signal.SIGINT)
    assert job.status() == 130
    assert support.family() == []
    job.process.stdin.close()


def test_nothing_survives_the_death_of_the_launcher(run):
    job = run("-n", 4, "--nodes", 2, program=HELLO + "import time\ntime.sleep(1000)\n")
    job.wait_printed("[0, 10, 21, 31]", 4)
    job.process.kill()
    job.status()
    support.wait_until(lambda: not support.family(), what="all processes are gone")


def test_a_lost_manager_ends_the_run(run):
    job = run("-n", 4, "--nodes", 2, program=HELLO + "node.barrier()\nimport time\ntime.sleep(1000)\n")
    job.wait_printed("[0, 10, 21, 31]", 4)
    os.kill(support.managers()[0], signal.SIGKILL)
    assert job.status() == 128 + signal.SIGKILL
    assert re.search(r"the manager of node \d ended with signal 9", job.stderr)


def test_an_address_that_is_taken_is_named(run):
    first = run("--listen", "127.0.0.1:0", "--secret-file", "s", program=None, verb=("node",))
    first.wait_printed("end this node")
    listen = first.stdout.split("listens on ")[1].split(";")[0]
    second = run("--listen", listen, "--secret-file", "s", program=None, verb=("node",))
    assert second.status() == 1
    assert f"cannot listen on {listen}: Address already in use" in second.stderr


def test_nodes_joined_by_hand(run, tmp_path):
    secret = tmp_path / "secret"
    first = run("--listen", "127.0.0.1:0", "--secret-file", secret, program=None, verb=("node",))
    first.wait_printed("end this node")
    listen = first.stdout.split("listens on ")[1].split(";")[0]
    (tmp_path / "other").mkdir()
    second = Launched(
        [
            sys.executable,
            "-m",
            "dsm",
            "node",
            "--listen",
            "127.0.0.1:0",
            "--join",
            listen,
            "--secret-file",
            str(secret),
        ],
        tmp_path / "other",
        {},
    )
    try:
        second.wait_printed("end this node")
        assert f"--join {listen} " in second.stdout, "others join the first node, whoever says so"
        values = []
        for launched, text in (
            (first, "a[0] = 7"),
            (second, "a[1] = 8; print(int(a[0]))"),
            (first, "print(int(a[1]))"),
        ):
            node = re.search(r"DSM_NODE=(\S+)", launched.stdout).group(1)
            program = f"import dsm\nnode = dsm.attach()\na = node.array('x', 2, 'i8')\n{text}\n"
            done = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "DSM_NODE": node},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            values.append(done.stdout.strip())
        assert values == ["", "7", "8"]
    finally:
        second.stop()
    first.process.send_signal(signal.SIGINT)
    assert first.status() == 0


def test_a_wrong_secret_is_refused(run, tmp_path):
    first = run("--listen", "127.0.0.1:0", "--secret-file", tmp_path / "secret", program=None, verb=("node",))
    first.wait_printed("end this node")
    listen = first.stdout.split("listens on ")[1].split(";")[0]
    (tmp_path / "other").mkdir()
    second = Launched(
        [sys.executable, "-m", "dsm", "node", "--listen", "127.0.0.1:0", "--join", listen],
        tmp_path / "other",
        {"DSM_SECRET": "x" * 32},
    )
    assert second.status() == 1
    assert "the manager did not start" in second.stderr
    assert first.process.poll() is None
