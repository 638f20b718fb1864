"""The fork server: ``python -m dsm.testing.forkserver DESCRIPTOR PARENT MODULE ...``.

Owns the server's end of `dsm.testing.starting`: it imports the modules and forks whatever is asked for over
the descriptor, a SOCK_SEQPACKET socket, until the parent closes it or ends.

A process is started in two forks.  The first becomes what is asked for, and forks the process proper, which
the parent adopts when the first ends (prctl(2), PR_SET_CHILD_SUBREAPER).  So it is the parent's own child, to
wait for and to die with, and the server has no children.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from dsm.errors import LimitError
from dsm.testing.starting import MOST_BYTES, MOST_DESCRIPTORS


def main(arguments: list[str]) -> int:
    """Serve until the starter closes; in a fork, run what was asked for."""
    control = socket.socket(fileno=int(arguments[0]))
    starter = os.pidfd_open(int(arguments[1]))
    for name in arguments[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection of a fork copies the pages that it shares with the server
    command = _serve(control, starter)
    if command is None:
        return 0
    name, sys.argv = _module(command), command[command.index("-m") + 1 :]
    _end(sys.modules[name].main(sys.argv[1:]) or 0)


def _end(status: int) -> NoReturn:
    """End as an interpreter does whose program is over, but leave to the kernel what all forks share.

    To take the imported modules apart copies the pages that hold them: thirty milliseconds.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as in multiprocessing's forks
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _module(command: Sequence[str]) -> str:
    """Return the module that holds ``main``."""
    name = command[command.index("-m") + 1]
    return f"{name}.__main__" if f"{name}.__main__" in sys.modules else name


def _serve(control: socket.socket, starter: int) -> list[str] | None:
    """Fork what is asked for; returns its command in the new process, nothing when the starter has closed.

    The starter's end is watched as a process: forks of it may have the socket, and the signal at a parent's
    death comes when the thread ends that started us.
    """
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those that we have forked
    while True:
        if control.fileno() not in select.select([control.fileno(), starter], [], [])[0]:
            return None
        text, descriptors, flags, _ = socket.recv_fds(control, MOST_BYTES, MOST_DESCRIPTORS)
        if not text:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise LimitError(f"a request to the fork server is longer than {MOST_BYTES} bytes")
        ours, theirs = socket.socketpair()
        middle = os.fork()
        if middle == 0:
            control.close()
            ours.close()
            os.close(starter)
            signal.signal(signal.SIGINT, interrupt)
            return _fork_again(json.loads(text), descriptors, theirs)
        theirs.close()
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(middle, 0)
        answer = ours.recv(64)
        ours.close()
        with contextlib.suppress(BrokenPipeError):  # the starter was interrupted while it waited
            control.send(answer)


def _fork_again(request: dict[str, Any], descriptors: list[int], server: socket.socket) -> list[str]:
    """Become what is asked for, fork it, and end; returns its command in the new process."""
    gate = _place(descriptors, request["descriptors"], server.detach())
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _show_environment()
    command: list[str] = request["command"]
    first = [] if "-P" in command[: command.index("-m")] else [request["directory"]]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = dict.fromkeys([*first, *given, *sys.path[1:]])
    child = os.fork()
    if child:
        if request["own_group"]:
            os.setpgid(child, child)
        os.write(gate, str(child).encode())
        os._exit(0)
    os.read(gate, 1)  # its end says that the starter has adopted this process
    os.close(gate)
    return command


def _place(descriptors: list[int], wanted: list[int], gate: int) -> int:
    """Give the descriptors the numbers that are wanted; returns the new number of `gate`."""
    above = max(wanted) + 1
    *moved, kept = (
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in (*descriptors, gate)
    )
    for descriptor in (*descriptors, gate):
        os.close(descriptor)
    for descriptor, number in zip(moved, wanted, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return kept


def _show_environment() -> None:
    """Put this process's environment where /proc shows it: over the one that the server started with."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # proc_pid_stat(5), (50) env_start and (51) env_end
    text = b"".join(b"%s=%s\0" % item for item in os.environb.items())
    if len(text) > end - start:
        raise LimitError(f"an environment of {len(text)} bytes does not fit into the fork server's")
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
