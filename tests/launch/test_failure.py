"""`dsm run`: failures, signals, and that nothing survives them."""

import os
import signal

import pytest

import support
from dsm import proc
from dsm.launch.job import ACCUSED_S, STOP_S

#: Longer than a test may take.
NEVER_S = 1000
WAITING = """
print("here", flush=True)
wait()
"""


def test_the_first_failure_stops_all_and_speaks_last(launch):
    run = launch(
        "-n",
        4,
        settings={"STOP_S": NEVER_S},
        program="""
        if rank == 2:
            sys.stdin.read()
            raise ValueError("the origin")
        signal.signal(signal.SIGTERM, lambda *_: print("stopping", rank, file=sys.stderr) or sys.exit(7))
        wait()
        """,
    )
    assert run.status() == 1
    assert run.stderr.endswith("ValueError: the origin\n")
    assert "dsm run: rank 2 failed first, with status 1; the others were stopped." in run.stderr


def test_workers_that_ignore_the_request_are_killed(launch):
    """Within the two seconds that are promised, as far as it is the launcher that waits."""
    assert STOP_S + ACCUSED_S < 2
    run = launch(
        "-n",
        3,
        program="""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        print("deaf", flush=True)
        signal.sigwait({signal.SIGUSR1})
        if rank == 1:
            sys.exit(5)
        wait()
        """,
    )
    run.wait_printed("deaf", 3)
    run.process.send_signal(signal.SIGUSR1)
    assert run.status() == 5
    assert support.family() == []


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "with signal 9 (SIGKILL)"),
        ("os.abort()", 134, "with signal 6 (SIGABRT)"),
        ("sys.exit(3)", 3, "with status 3"),
        ("sys.exit('a message')", 1, "a message"),
        ("def broken(:", 1, "SyntaxError"),
    ],
)
def test_the_status_is_that_of_the_worker(launch, ending, status, said):
    run = launch("-n", 2, program=f"if rank == 0: wait()\n{ending}\n" if "def" not in ending else ending)
    assert run.status() == status
    assert said in run.stderr


def test_a_signal_is_named_also_for_a_single_worker(launch):
    run = launch("-n", 1, program="os.kill(os.getpid(), signal.SIGSEGV)")
    assert run.status() == 139
    assert "rank 0 failed first, with signal 11 (SIGSEGV)" in run.stderr


def test_who_accuses_a_peer_is_not_the_origin(launch):
    """The origin prints its traceback, leaves its barriers, and ends later than those it has failed."""
    run = launch(
        "-n",
        3,
        settings={"ACCUSED_S": NEVER_S},
        program="""
        import atexit
        from pathlib import Path
        from dsm.errors import BrokenBarrierError

        def others_have_ended():
            states = [Path(f"/proc/{file.read_text()}/stat") for file in Path().glob("pid-?")]
            return [state.read_text().rpartition(")")[2].split()[0] for state in states] == ["Z", "Z"]

        def linger():
            while not others_have_ended():
                time.sleep(0.005)

        if rank != 1:
            file = Path(f"pid-{rank}.new")
            file.write_text(str(os.getpid()))
            file.rename(f"pid-{rank}")
            raise BrokenBarrierError("rank 1 left the barrier")
        atexit.register(linger)
        raise KeyError("the origin")
        """,
    )
    assert run.status() == 1
    assert run.stderr.endswith("KeyError: 'the origin'\n")
    assert "rank 1 failed first" in run.stderr


def test_an_accusation_stands_when_nobody_else_fails(launch):
    run = launch(
        "-n",
        2,
        program="""
        from dsm.errors import PageLostError
        if rank:
            raise PageLostError("page 7 of region 'grid' is lost")
        wait()
        """,
    )
    assert run.status() == 1
    assert run.stderr.rstrip().endswith("page 7 of region 'grid' is lost")
    assert "rank 1 failed first" in run.stderr


def test_continue_lets_the_others_finish(launch, tmp_path):
    run = launch(
        "-n",
        3,
        "--on-failure",
        "continue",
        program="""
        if rank == 1:
            sys.exit(4)
        while not os.path.exists("go"):
            time.sleep(0.01)
        print("finished", rank)
        if rank == 2:
            sys.exit(6)
        """,
    )
    run.wait_said("rank 1 failed with status 4; the others go on")
    (tmp_path / "go").touch()
    assert run.status() == 4
    assert sorted(run.stdout.splitlines()) == ["finished 0", "finished 2"]


def test_ctrl_c_reaches_every_worker(launch):
    run = launch(
        "-n",
        3,
        settings={"INTERRUPT_S": NEVER_S},
        program="""
        try:
            print("here", flush=True)
            wait()
        except KeyboardInterrupt:
            print("cleaned up", rank)
            raise
        """,
    )
    run.wait_printed("here", 3)
    run.process.send_signal(signal.SIGINT)
    assert run.status() == 130
    assert run.stdout.count("cleaned up") == 3
    assert "failed first" not in run.stderr


def test_a_program_may_end_well_on_ctrl_c(launch):
    run = launch(
        "-n",
        2,
        settings={"INTERRUPT_S": NEVER_S},
        program="""
        try:
            print("here", flush=True)
            wait()
        except KeyboardInterrupt:
            pass
        """,
    )
    run.wait_printed("here", 2)
    run.process.send_signal(signal.SIGINT)
    assert run.status() == 0


def test_ctrl_c_twice_kills(launch):
    run = launch(
        "-n",
        2,
        settings={"INTERRUPT_S": NEVER_S, "STOP_S": NEVER_S},
        program="""
        signal.signal(signal.SIGINT, lambda *_: print("no", flush=True))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("here", flush=True)
        wait()
        """,
    )
    run.wait_printed("here", 2)
    run.process.send_signal(signal.SIGINT)
    run.wait_printed("no", 2)
    run.process.send_signal(signal.SIGINT)
    assert run.status() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_ending_signals_end_all(launch, number):
    run = launch("-n", 2, "--nodes", 2, program=WAITING)
    run.wait_printed("here", 2)
    run.process.send_signal(number)
    assert run.status() == 128 + number
    assert support.family() == []


def test_a_signal_while_managers_start(launch):
    run = launch("-n", 2, program=WAITING, environment={"FAKE_MANAGER": "slow"})
    support.wait_until(support.managers, what="a manager runs")
    run.process.send_signal(signal.SIGTERM)
    assert run.status() == 128 + signal.SIGTERM


@pytest.mark.parametrize("stopped", [False, True])
def test_a_manager_that_is_starting_ends_with_the_launcher(launch, stopped):
    """Also one that hangs: it does not look at its guard yet."""
    run = launch("-n", 2, program=WAITING, environment={"FAKE_MANAGER": "slow"})
    run.wait_said("starting")
    (manager,) = support.managers()
    if stopped:
        os.kill(manager, signal.SIGSTOP)
        support.wait_until(lambda: support.state(manager) == "T")
    run.process.kill()
    run.status()
    support.wait_until(lambda: not support.family(), what="the manager is gone")


def test_nothing_survives_the_death_of_the_launcher(launch):
    run = launch(
        "-n",
        4,
        "--nodes",
        2,
        program="""
        subprocess.Popen(["sleep", "1000"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("here", flush=True)
        wait()
        """,
    )
    run.wait_printed("here", 4)
    assert len(proc.manager_sockets()) >= 2
    run.process.kill()
    run.status()
    support.wait_until(lambda: not support.family(), what="all processes are gone")


def test_nothing_survives_a_launcher_killed_at_any_moment(launch):
    """From before the first manager is ready until the workers run."""
    for step in range(8):
        run = launch("-n", 2, "--nodes", 2, program=WAITING)
        support.wait_until(
            lambda wanted=step: len(support.family()) > min(wanted, 4), what=f"{step} processes run"
        )
        run.process.kill()
        run.status()
        support.wait_until(lambda: not support.family(), what="all processes are gone")


def test_user_signals_are_forwarded(launch):
    run = launch(
        "-n",
        2,
        program="""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        print("here", flush=True)
        signal.sigwait({signal.SIGUSR1})
        print("told")
        """,
    )
    run.wait_printed("here", 2)
    run.process.send_signal(signal.SIGUSR1)
    assert run.status() == 0
    assert run.stdout.count("told") == 2
