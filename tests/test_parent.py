"""What happens to a process when the one that started it dies."""

import os
import signal
import subprocess
import sys

import pytest

import support
from dsm import proc

#: A process that waits for the death of its parent, at the end of a pipe of which the other end is there.
CHILD = """
import os, sys
from dsm.parent import die_with, wake_at_its_death
die_with(os.getppid())
{then}
print(os.getpid(), flush=True)
sys.stdin.read()
print("woken", flush=True)
"""
PARENT = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {!r}], stdin=subprocess.PIPE).wait()"
)


@pytest.mark.parametrize(("then", "said"), [("", ""), ("wake_at_its_death()", "woken\n")])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_death_of_the_parent_reaches_also_who_is_stopped(then, said, stopped):
    command = [sys.executable, "-c", PARENT.format(CHILD.format(then=then))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        if stopped:
            os.kill(child, signal.SIGSTOP)
            support.wait_until(lambda: support.state(child) == "T")
        parent.kill()
        support.wait_until(lambda: not proc.is_alive(child), what="the child is gone")
        if stopped or said:
            assert parent.stdout.read() == said


def _run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_who_comes_too_late_ends_at_once():
    done = _run("from dsm.parent import die_with; die_with(1 << 30); print('alive')")
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "")


def test_who_is_not_tied_is_not_woken():
    program = """
import ctypes
from dsm.parent import wake_at_its_death
wake_at_its_death()
number = ctypes.c_int(-1)
ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)  # PR_GET_PDEATHSIG
print(number.value)
"""
    assert _run(program).stdout == "0\n"


def test_what_a_child_says_before_exec_is_there_and_needs_no_reader():
    program = """
import os, subprocess, sys
from dsm.launch.processes import die_with_parent
read, write = os.pipe()
broken, nowhere = os.pipe()
os.close(broken)

def say(pid):
    try:
        os.write(nowhere, b"x")
    except BrokenPipeError:
        os.write(write, b"%d" % pid)

look = f"import os; print(os.read({read}, 99) == b'%d' % os.getpid())"
subprocess.run([sys.executable, "-c", look], preexec_fn=die_with_parent(say), pass_fds=[read], check=True)
"""
    assert _run(program).stdout == "True\n"
