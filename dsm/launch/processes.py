"""What a launcher must know of processes: how they ended, who descends from whom, groups.

An ended worker stays a zombie until its job is over: its number, which is also the number of its
process group, cannot be given to a stranger that a guard would then kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterable

from dsm import proc
from dsm.parent import die_with

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


def become_subreaper(on: bool) -> bool:
    """Make orphans among our descendants our children (or not), so that none escapes; returns what was."""
    was = ctypes.c_int()
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
    return bool(was.value)


def die_with_parent(then: Callable[[int], None] = lambda _pid: None) -> Callable[[], None]:
    """Return what a child does between fork and exec.

    It is tied to us, so that it gets SIGKILL when we die; then it calls `then` with its process number.
    """
    parent = os.getpid()

    def before_exec() -> None:
        die_with(parent)
        # What `then` writes to may have no reader; what is executed finds the signal as it was.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        then(os.getpid())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    return before_exec


class Process:
    """A child with its own process group; ended, it is kept as a zombie until `reap`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)
        #: Exit status as a shell gives it (128 + signal); None while it runs.
        self.status: int | None = None
        #: The signal that killed it, or 0.
        self.killed_by = 0

    def look(self) -> bool:
        """Learn how it ended, without reaping; False while it runs."""
        if self.status is None:
            ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return False
            if ended.si_code == os.CLD_EXITED:
                self.status = ended.si_status
            else:
                self.killed_by = ended.si_status
                self.status = 128 + ended.si_status
        return True

    def describe_end(self) -> str:
        """Say how it ended: ``status 3`` or ``signal 9 (SIGKILL)``."""
        if self.killed_by:
            return f"signal {self.killed_by} ({signal_name(self.killed_by)})"
        return f"status {self.status}"

    def signal_group(self, number: int) -> None:
        """Signal its whole group; also after it has ended, when its children may still be there."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reap(self) -> None:
        """Take the zombie away and close what refers to it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self._popen.returncode = -self.killed_by if self.killed_by else self.status
            os.close(self.pidfd)
            self.pidfd = -1


def detach(stream: object) -> int:
    """Return a descriptor of our own for a pipe of `subprocess`, and close its file object."""
    fd = os.dup(stream.fileno())  # type: ignore[attr-defined]
    stream.close()  # type: ignore[attr-defined]
    return fd


def signal_name(number: int) -> str:
    """Return the name of a signal; real-time ones have none in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def descendants(but_not: Iterable[int] = ()) -> list[int]:
    """Return the living processes that descend from this one, leaving out those given and theirs."""
    children: dict[int, list[int]] = {}
    living: set[int] = set()
    for pid in proc.processes():
        state = proc.process_state(pid)
        if state.letter:
            children.setdefault(state.parent, []).append(pid)
        if state.letter not in ("", "Z", "X"):
            living.add(pid)
    found = []
    queue = [os.getpid()]
    skipped = set(but_not)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in skipped:
                queue.append(child)
                if child in living:
                    found.append(child)
    return found


def signal_process(pid: int, number: int) -> None:
    """Signal one process, which may have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def reap_strangers() -> None:
    """Take away every zombie that is ours (adopted orphans); only when none is needed any more."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
