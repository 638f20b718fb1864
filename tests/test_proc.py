"""What `dsm.proc` reads in /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid

import pytest

import support
from dsm import proc

NOBODY = 1 << 30


@pytest.fixture
def child():
    """A process with a mark in its environment, and a name that is hard to read."""
    mark = uuid.uuid4().hex
    program = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) R (b 1'); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", program, "a word", ""], env=os.environ | {"A_MARK": mark}, **pipes
    ) as process:
        process.stdout.readline()
        process.mark = mark
        yield process
        process.kill()


def test_state_parent_and_end_of_a_process(child):
    support.wait_until(lambda: proc.process_state(child.pid).letter == "S")
    assert proc.process_state(child.pid).parent == os.getpid()
    child.send_signal(signal.SIGSTOP)
    support.wait_until(lambda: proc.process_state(child.pid).letter == "T")
    assert proc.is_alive(child.pid)
    child.kill()
    support.wait_until(lambda: proc.process_state(child.pid).letter == "Z")
    assert not proc.is_alive(child.pid)
    assert child.pid in proc.processes()


def test_processor_time():
    before = proc.process_state(os.getpid()).cpu_s
    support.wait_until(lambda: proc.process_state(os.getpid()).cpu_s > before)


def test_nobody():
    assert proc.process_state(NOBODY) == ("", 0.0, 0)
    assert not proc.is_alive(NOBODY)
    assert proc.command_line(NOBODY) == []
    assert proc.descriptors(NOBODY) == set()


def test_environment_and_command_line(child):
    assert proc.processes_marked("A_MARK", child.mark) == [child.pid]
    assert proc.processes_marked("A_MARK", child.mark[:-1]) == []
    assert proc.command_line(child.pid)[-2:] == ["a word", ""]


def test_sockets_of_managers_and_who_has_them():
    name = f"@dsm-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + name[1:])
        inode = proc.manager_sockets()[name]
        assert f"socket:[{inode}]" in proc.descriptors("self")
    assert name not in proc.manager_sockets()


def test_mappings():
    found = list(proc.mappings())
    assert all(low < high for low, high, _ in found)
    assert "[stack]" in {name for _, _, name in found}
    ours = id(found)  # of CPython: where the object lies
    assert sum(low <= ours < high for low, high, _ in found) == 1


def test_memory():
    found = proc.memory()
    assert 0 < found["MemAvailable"] <= found["MemTotal"]
    assert found["MemTotal"] % 1024 == 0
    assert "HugePages_Total" not in found, "a number of pages, not of bytes"
    assert proc.max_map_count() > 0
