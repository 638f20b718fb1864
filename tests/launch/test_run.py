"""`dsm run`: how a program starts, what it prints, with which status it ends."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

import support
from dsm.launch.ranks import deal


def test_ranks_are_dealt_in_blocks():
    assert [list(block) for block in deal(7, 3)] == [[0, 1, 2], [3, 4], [5, 6]]


def test_every_rank_gets_its_place(launch):
    run = launch("-n", 4, "--nodes", 2, program="print(rank, size, os.environ['DSM_NODE'], sys.argv[1:])")
    assert run.status() == 0
    lines = sorted(line.split() for line in run.stdout.splitlines())
    assert [line[:2] for line in lines] == [[str(rank), "4"] for rank in range(4)]
    nodes = [line[2] for line in lines]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
    assert all(node.startswith("@dsm-") for node in nodes)
    assert run.stderr == ""


def test_arguments_of_the_program_are_its_own(launch, tmp_path):
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:])")
    run = launch("-n", 1, "program.py", "-n", "9", "--nodes", "--help")
    assert run.status() == 0
    assert run.stdout == "['-n', '9', '--nodes', '--help']\n"


def test_modules_run_too(launch, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tool.py").write_text("import sys; print(__name__, sys.argv[1:])")
    run = launch("-n", 1, "-m", "package.tool", "--x")
    assert run.status() == 0
    assert run.stdout == "__main__ ['--x']\n"


def test_the_secret_reaches_no_worker_and_no_command_line(launch):
    run = launch(
        "-n",
        2,
        "--nodes",
        2,
        program="""
        print(any("SECRET" in key for key in os.environ), flush=True)
        wait()
        """,
    )
    run.wait_printed("False", 2)
    marked = support.family()
    environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in marked]
    secrets = {entry for environment in environments for entry in environment if "DSM_SECRET" in entry}
    assert len(secrets) == 1
    secret = secrets.pop().partition("=")[2]
    assert len(secret) >= 32
    assert not any(secret in Path(f"/proc/{pid}/cmdline").read_text() for pid in marked)
    run.process.terminate()
    assert run.status() == 128 + signal.SIGTERM


def test_threads_are_shared_out_unless_the_user_says_how(launch):
    program = "print(os.environ['OMP_NUM_THREADS'])"
    run = launch("-n", 2, program=program)
    assert run.status() == 0
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert run.stdout == f"{share}\n" * 2
    run = launch("-n", 2, program=program, environment={"OMP_NUM_THREADS": "7"})
    assert run.status() == 0
    assert run.stdout == "7\n" * 2


def test_standard_input_goes_to_rank_0(launch, tmp_path):
    (tmp_path / "input").write_bytes(b"one\ntwo\n")
    with (tmp_path / "input").open("rb") as stdin:
        run = launch("-n", 2, program="print(rank, sys.stdin.read().split())", stdin=stdin)
        assert run.status() == 0
    assert sorted(run.stdout.splitlines()) == ["0 ['one', 'two']", "1 []"]


def test_lines_are_never_mixed(launch):
    program = """
    for number in range(200):
        for piece in ("<%d:" % rank, "x" * 5000, ">\\n"):
            os.write(1, piece.encode())
    """
    run = launch("-n", 4, program=program)
    assert run.status() == 0
    lines = run.stdout.splitlines()
    assert sorted(lines) == sorted(f"<{rank}:{'x' * 5000}>" for rank in range(4) for _ in range(200))


def test_output_without_a_terminal_is_passed_through_byte_for_byte(launch, tmp_path):
    launch("-n", 1, program="os.write(1, bytes(range(256)) * 1000)").status()
    assert (tmp_path / "stdout").read_bytes() == bytes(range(256)) * 1000


def test_prefixes_on_demand(launch):
    run = launch("-n", 12, "--prefix", "always", program="print('line'); print('end', end='')")
    assert run.status() == 0
    expected = [f"[{rank:2}] {word}" for rank in range(12) for word in ("line", "end")]
    assert sorted(run.stdout.splitlines()) == sorted(expected)


def test_a_reader_that_goes_away_ends_the_run(launch):
    run = launch("-n", 2, program="while True: print('y' * 1000)", stdout=subprocess.PIPE)
    run.process.stdout.read(10)
    run.process.stdout.close()
    assert run.status() == 128 + signal.SIGPIPE


def test_a_full_disk_ends_the_run_and_is_named(launch):
    with open("/dev/full", "wb") as full:
        run = launch("-n", 1, program="print('x', flush=True)\nwait()", stdout=full)
        assert run.status() == 1
    assert "cannot write what the program prints: No space left on device" in run.stderr


def test_a_slow_reader_loses_nothing(launch):
    run = launch("-n", 2, program="print('z' * 3_000_000)", stdout=subprocess.PIPE)
    assert run.process.stdout.read().count(b"z") == 6_000_000
    run.process.stdout.close()
    assert run.status() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-n", "0", "x.py"], "-n 0: from 1 to 256"),
        (["-n", "2", "--nodes", "65", "x.py"], "--nodes 65: from 1 to 64"),
        (["-n", "1", "--nodes", "2", "x.py"], "each node needs a worker"),
        (["-n", "2"], "no program"),
        (["-n", "2", "absent.py"], "cannot find the program absent.py"),
        (["--timeout", "-1", "x.py"], "a positive number of seconds"),
        (["--page-timeout", "-1", "x.py"], "--page-timeout -1.0: seconds are needed"),
        (["--page-timeout", "nan", "x.py"], "--page-timeout nan: seconds are needed"),
        (["--on-failure", "ignore", "x.py"], "invalid choice"),
    ],
)
def test_wrong_usage_starts_nothing(launch, arguments, complaint):
    run = launch(*arguments)
    assert run.status() == 2
    assert complaint in run.stderr


def test_a_manager_that_refuses_is_quoted(launch):
    run = launch("-n", 2, "--nodes", 2, program="", environment={"FAKE_MANAGER": "error"})
    assert run.status() == 1
    assert run.stderr == "dsm run: the manager of node 1 did not start: no such cluster\n"


def test_a_manager_that_breaks_shows_its_traceback_first(launch):
    run = launch("-n", 2, program="", environment={"FAKE_MANAGER": "crash"})
    assert run.status() == 1
    lines = run.stderr.splitlines()
    assert lines[-2].endswith("RuntimeError: the manager is broken")
    assert lines[-1].startswith("dsm run: the manager of node 0 did not start: it ended")


def test_a_manager_that_does_not_listen_is_killed(launch):
    run = launch("-n", 1, program="", environment={"FAKE_MANAGER": "deaf"})
    assert run.status() == 0


def test_a_manager_that_dies_ends_the_run(launch):
    run = launch("-n", 2, program="print('here', flush=True); wait()")
    run.wait_printed("here", 2)
    (manager,) = support.managers()
    os.kill(manager, signal.SIGKILL)
    assert run.status() == 128 + signal.SIGKILL
    assert "the manager of node 0 ended with signal 9 (SIGKILL) before its workers" in run.stderr


def test_timeout_says_so(launch):
    run = launch("-n", 2, "--timeout", "0.5", program="wait()")
    assert run.status() == 124
    assert run.stderr == "dsm run: not done after 0.5 s (--timeout): stopped\n"


def test_what_workers_leave_behind_is_ended(launch):
    program = """
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000"])
    """
    run = launch("-n", 2, program=program)
    assert run.status() == 0
    assert support.family() == []


def test_node_runs_until_it_is_told_to_end(launch, tmp_path):
    secret = tmp_path / "secret"
    first = launch("--listen", "127.0.0.1:0", "--secret-file", secret, verb="node")
    first.wait_printed("end this node")
    assert secret.stat().st_mode & 0o777 == 0o600
    listen = first.stdout.split("listens on ")[1].split(";")[0]
    assert f"--join {listen} --secret-file {secret}" in first.stdout
    assert "DSM_NODE=@dsm-" in first.stdout
    first.process.send_signal(signal.SIGINT)
    assert first.status() == 0


def test_node_ends_when_it_is_killed(launch, tmp_path):
    node = launch("--listen", "127.0.0.1:0", "--secret-file", tmp_path / "secret", verb="node")
    node.wait_printed("end this node")
    node.process.kill()
    node.status()
    support.wait_until(lambda: not support.managers(), what="the manager has ended")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--listen", "nowhere"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:0"], "nodes need a secret"),
        (["--listen", "127.0.0.1:0", "--page-timeout", "-1"], "--page-timeout -1.0: seconds are needed"),
        (["--listen", "127.0.0.1:0", "--join", "h:1", "--secret-file", "absent"], "copy it from the node"),
    ],
)
def test_node_refuses_wrong_usage(launch, arguments, complaint):
    node = launch(*arguments, verb="node")
    assert node.status() == 2
    assert complaint in node.stderr


def test_node_refuses_a_secret_that_others_can_read(launch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef" * 4)
    secret.chmod(0o644)
    node = launch("--listen", "127.0.0.1:0", "--secret-file", secret, verb="node")
    assert node.status() == 2
    assert "chmod 600" in node.stderr
