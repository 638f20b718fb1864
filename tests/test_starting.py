"""A process that the fork server starts finds what an interpreter of its own would find, and ends alike."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import support
from dsm import proc
from dsm.errors import NodeLostError
from dsm.launch.processes import become_subreaper
from dsm.testing import starting
from dsm.testing.starting import Forked, ForkServer

MODULE = [sys.executable, "-m", "started"]


@pytest.fixture(scope="module")
def server():
    server = ForkServer(["started"])
    yield server
    server.close()


@pytest.fixture(params=["forked", "interpreter"])
def start(request, server, monkeypatch):
    """Start a command in one of the two ways; what still runs is killed."""
    monkeypatch.setattr(starting, "_current", server if request.param == "forked" else None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    processes = []

    def start(*command, **options):
        process = starting.start(command, **{"env": dict(os.environ), "pass_fds": [], **options})
        processes.append(process)
        assert isinstance(process, Forked if request.param == "forked" else subprocess.Popen)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def _told(start, command, **options):
    """Return what a process has found."""
    ours, theirs = os.pipe()
    process = start(*command, "tell", str(theirs), pass_fds=[theirs], **options)
    os.close(theirs)
    with open(ours) as pipe:
        found = json.load(pipe)
    assert process.wait() == 0
    assert found["pid"] == process.pid and found["descriptor"] == theirs
    return found


def test_it_finds_what_it_was_given(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "A_WORD": "grün", "EMPTY": ""}
    environment.pop(support.SESSION_MARK)
    found = _told(start, MODULE, env=environment)
    assert environment.items() <= found["environment"].items()
    assert support.SESSION_MARK not in found["environment"]
    assert sorted(found["environment in /proc"]) == sorted(f"{k}={v}" for k, v in environment.items())
    assert found["directory"] == found["first of the path"] == str(tmp_path)
    assert found["standard descriptors"][0] == "/dev/null"
    assert found["standard descriptors"][1:] == [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]
    assert found["other descriptors"] == 1
    assert found["parent"] == os.getpid() and found["group"] == os.getpgrp()
    assert found["Ctrl-C raises"] and found["blocked signals"] == []
    assert found["package"] == starting.__file__.rpartition("/testing/")[0]


def test_it_can_lead_a_group_and_ignore_its_directory(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = _told(start, [sys.executable, "-P", "-m", "started"], own_group=True)
    assert found["group"] == found["pid"]
    assert found["first of the path"] != str(tmp_path)


def test_its_output_goes_where_ours_goes_then(start, tmp_path):
    before = os.dup(2)
    try:
        with open(tmp_path / "errors", "w") as file:
            os.dup2(file.fileno(), 2)
            process = start(*MODULE, "raise")
    finally:
        os.dup2(before, 2)
        os.close(before)
    assert process.wait() == 1
    assert (tmp_path / "errors").read_text().endswith("\nLookupError: nobody catches this\n")


@pytest.mark.parametrize(("how", "code"), [(["exit", "3"], 3), (["exit", "0"], 0), (["signal", "15"], -15)])
def test_its_end_is_known(start, how, code):
    process = start(*MODULE, *how)
    assert process.wait() == process.poll() == process.returncode == code
    process.kill()  # is no error, and meets nobody else


def test_it_can_be_waited_for_and_killed(start):
    process = start(*MODULE, "wait")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: support.state(process.pid) == "T")
    assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not proc.is_alive(process.pid)


def test_its_mark_is_found(start):
    process = start(*MODULE, "wait")
    support.wait_until(lambda: process.pid in support.family())


def test_what_cannot_be_started_says_so_and_harms_nobody(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(starting, "_current", server)
    gone = tmp_path / "gone"
    gone.mkdir()
    with monkeypatch.context() as here:
        here.chdir(gone)
        gone.rmdir()
        with pytest.raises(OSError):
            starting.start([*MODULE, "exit", "0"], env=dict(os.environ), pass_fds=[])
    large = dict(os.environ, LARGE="x" * 40_000)
    with pytest.raises(NodeLostError, match=r"could not start .*-m started"):
        starting.start([*MODULE, "exit", "0"], env=large, pass_fds=[])
    assert "LimitError: an environment of " in capfd.readouterr().err
    process = starting.start([*MODULE, "exit", "0"], env=dict(os.environ), pass_fds=[])
    assert isinstance(process, Forked) and process.wait() == 0


def test_a_server_that_has_ended_is_told():
    with ForkServer(["no_such_module"]), pytest.raises(NodeLostError, match="could not start"):
        starting.start([*MODULE, "exit", "0"], env=dict(os.environ), pass_fds=[])


def test_a_server_outlives_the_thread_that_asked_first():
    with ForkServer(["started"]):
        first = []

        def ask():
            first.append(starting.start([*MODULE, "exit", "0"], env=dict(os.environ), pass_fds=[]))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        second = starting.start([*MODULE, "exit", "7"], env=dict(os.environ), pass_fds=[])
        assert first[0].wait() == 0 and second.wait() == 7


def test_an_answer_that_came_too_late_is_nobodys(monkeypatch):
    """An exception comes between a question and its answer."""

    class Interrupted(Exception):
        pass

    class Socket:
        def __init__(self, real):
            self.fileno, self.sendmsg, self.close = real.fileno, real.sendmsg, real.close

        def recv(self, count):
            raise Interrupted

    with ForkServer(["started"]) as server:
        ask = functools.partial(starting.start, env=dict(os.environ), pass_fds=[])
        assert ask([*MODULE, "exit", "0"]).wait() == 0
        server._control = Socket(server._control)
        with pytest.raises(Interrupted):
            ask([*MODULE, "exit", "1"])
        assert ask([*MODULE, "exit", "2"]).wait() == 2


def test_who_adopts_orphans_goes_on_to():
    try:
        assert not become_subreaper(True)
        with ForkServer(["started"]):
            process = starting.start([*MODULE, "exit", "0"], env=dict(os.environ), pass_fds=[])
        assert process.wait() == 0
    finally:
        assert become_subreaper(False)


def test_a_fork_of_the_starter_has_interpreters(server, monkeypatch):
    monkeypatch.setattr(starting, "_current", server)
    assert server.can_start(MODULE)
    child = os.fork()
    if child == 0:
        os._exit(int(server.can_start(MODULE)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not server.can_start(["ip", "netns", "exec", "host", *MODULE])
    assert not server.can_start([sys.executable, "-c", "pass"])


STARTER = """
import os, signal, sys
from dsm.testing.starting import ForkServer, start

with ForkServer(["started"]):
    start([sys.executable, "-m", "started", "wait"], env=os.environ, pass_fds=[])
    print("started", flush=True)
    signal.pause()
"""


def test_the_server_ends_with_its_starter():
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen([sys.executable, "-c", STARTER], env=environment, **pipes) as starter:
        assert starter.stdout.readline() == b"started\n"
        servers = [pid for pid in support.family() if pid != starter.pid]
        starter.kill()
    support.wait_until(lambda: len([pid for pid in servers if proc.is_alive(pid)]) == 1)
    (left,) = [pid for pid in servers if proc.is_alive(pid)]  # the one that asked for no such end
    os.kill(left, signal.SIGKILL)
