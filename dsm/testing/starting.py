"""Starting the processes of a cluster, as new interpreters or as forks of one that has imported all.

Owns the starter's end of the fork server.  A fork costs milliseconds where an interpreter that imports the
manager or a worker takes a third of a second of processor time.  What the program can see of its start is as
in an interpreter of its own: environment (in /proc, too), directory, module path, descriptors, process group,
parent and exit status.  Its command line in /proc is the server's, and what the interpreter itself reads
from the environment (PYTHONHASHSEED, say) was read when the server started.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeAlias

from dsm.errors import NodeLostError
from dsm.launch.processes import become_subreaper
from dsm.manager_process import PACKAGE_ROOT

#: What managers and workers import in any case.
_IMPORTED = ("dsm.manager.__main__", "dsm.testing.serving", "dsm.worker.attach", "numpy")
#: The longest request, most of which is an environment.
MOST_BYTES = 1 << 17
MOST_DESCRIPTORS = 16
#: A variable that makes room for the environments of forks in /proc.
_ROOM = "DSM_FORK_SERVER_ROOM"
_ROOM_BYTES = 1 << 15


class Forked:
    """A process that a `ForkServer` has started: what `subprocess.Popen` offers of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: Its exit code, negative for a signal; None while it runs, as far as is known.
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended.

        Raises
        ------
        subprocess.TimeoutExpired
            It has not within `timeout` seconds.
        """
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


Process: TypeAlias = subprocess.Popen[bytes] | Forked


class ForkServer:
    """A context manager: within, the processes of clusters are forks of one that has imported what they need.

    A cluster starts in a tenth of the time.  Processes on the hosts of a `Network` are interpreters of their
    own nevertheless.

    Parameters
    ----------
    modules : sequence of str, optional
        What the functions import that workers run.

    Examples
    --------
    >>> with ForkServer(["scipy.ndimage"]):
    ...     with Cluster(nodes=2) as cluster:
    ...         cluster.all(steps.smooth)
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._modules = [*_IMPORTED, *modules]
        #: What it starts with, when the first process is asked for.
        path = os.pathsep.join(filter(None, [PACKAGE_ROOT, *sys.path]))
        self._environment = {**os.environ, "PYTHONPATH": path, _ROOM: "." * _ROOM_BYTES}
        self._server: subprocess.Popen[bytes] | None = None
        self._starter = os.getpid()
        #: One at a time asks.
        self._lock = threading.Lock()
        self._before: ForkServer | None = None

    def can_start(self, command: Sequence[str]) -> bool:
        """Return whether the command is one for this server, which a fork of the starter cannot use."""
        return command[0] == sys.executable and "-m" in command and os.getpid() == self._starter

    def start(
        self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], own_group: bool
    ) -> Forked:
        """Start ``[sys.executable, "-m" or "-P", "-m", MODULE, *arguments]``, with our standard output.

        Raises
        ------
        NodeLostError
            The server has ended, or could not do it; its error output says why.
        """
        request = {
            "command": command,
            "environment": dict(env),
            "directory": os.getcwd(),
            "descriptors": [1, 2, *pass_fds],
            "own_group": own_group,
        }
        with self._lock:
            if self._server is None:
                self._begin()
            answer = b""
            try:
                with _adopting(), suppress(ConnectionError):
                    socket.send_fds(self._control, [json.dumps(request).encode()], [1, 2, *pass_fds])
                    answer = self._control.recv(64)
            finally:
                if not answer:  # it has ended; or we are interrupted, and its next answer is for nobody
                    self.close()
        if not answer:
            raise NodeLostError(
                f"the fork server could not start {' '.join(command)}; its error output says why"
            )
        return Forked(int(answer))

    def _begin(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, "-m", "dsm.testing.forkserver", str(theirs.fileno()), str(os.getpid())]
            self._server = subprocess.Popen(
                [*words, *self._modules],
                env=self._environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """End the server; what it has started goes on."""
        if self._server is not None:
            self._control.close()
            self._server.wait()
            self._server = None

    def __enter__(self) -> Self:
        global _current
        self._before, _current = _current, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self._before
        self.close()


#: The server of this process, from which clusters have their processes.
_current: ForkServer | None = None


@contextmanager
def _adopting() -> Iterator[None]:
    """Make orphans among our descendants our children meanwhile."""
    was = become_subreaper(True)
    try:
        yield
    finally:
        become_subreaper(was)


def start(
    command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], own_group: bool = False
) -> Process:
    """Start a process with an empty standard input: by the fork server of this process if it can."""
    if _current is not None and _current.can_start(command):
        return _current.start(command, env=env, pass_fds=pass_fds, own_group=own_group)
    return subprocess.Popen(
        command,
        env=env,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        process_group=0 if own_group else None,
    )
