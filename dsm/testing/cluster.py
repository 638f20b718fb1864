"""Real clusters on this machine, for tests and benchmarks.

Owns processes: a `Cluster` starts managers and workers, runs functions in the workers and ends all of
them, whatever happens.  A function runs as ``function(node, *arguments)`` in its worker, which has
attached; it must be importable there, from a module that is not run as the program itself::

    # steps.py
    def put(node, value):
        node.array("x", 10, "f8")[:] = value

    def total(node):
        return float(node.array("x", 10, "f8").sum())

    # test_steps.py
    with Cluster(nodes=2) as cluster:
        cluster.workers[0].call(steps.put, 2.0)
        assert cluster.workers[1].call(steps.total) == 20.0
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Self

from dsm.errors import DSMError, NodeLostError, PageTimeoutError, UsageError
from dsm.manager_process import PACKAGE_ROOT, manager_command, manager_environment
from dsm.testing.network import Network
from dsm.testing.starting import Process, start
from dsm.worker.startup import wait_ready

#: Seconds that starting a process, or a call without its own timeout, may take.
DEFAULT_TIMEOUT_S = 60.0
#: Seconds that a process may take to end before it is killed.
_END_S = 5.0


class WorkerFailed(DSMError):
    """A function raised in a worker; the message has its traceback."""


class Future:
    """The result of a function that runs in a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        #: Whether the function has returned, and what it returned or raised; None: not known yet.
        self._answer: tuple[bool, Any] | None = None

    def result(self, timeout: float = DEFAULT_TIMEOUT_S) -> Any:
        """Wait for the function's result, which can be asked for again.

        Raises
        ------
        Exception
            What the function raised, with its traceback as a note.
        PageTimeoutError
            It has not returned in time; what it returns later is not taken for another function's result.
        NodeLostError
            The worker ended.
        """
        deadline = time.monotonic() + timeout
        while self._answer is None:
            self._worker._receive(max(0.0, deadline - time.monotonic()), timeout)
        good, value = self._answer
        if good:
            return value
        raise value


class Worker:
    """A worker process of a `Cluster`."""

    def __init__(
        self, address: str, rank: int, size: int, cpus: set[int] | None, host: Sequence[str] = ()
    ) -> None:
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        #: What it has yet to answer, in order: first that it has attached.
        self._attached = Future(self)
        self._unanswered = deque([self._attached])
        self.rank = rank
        environment = dict(os.environ, DSM_NODE=address, DSM_RANK=str(rank), DSM_SIZE=str(size))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE_ROOT, *sys.path]))
        self.process = start(
            [*host, sys.executable, "-m", "dsm.testing.serving", str(theirs.fileno()), str(os.getpid())],
            env=environment,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        if cpus is not None:
            os.sched_setaffinity(self.process.pid, cpus)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def start(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Begin ``function(node, *arguments)`` in the worker, which does one thing at a time."""
        future = Future(self)
        with contextlib.suppress(ConnectionError):  # it has ended: its result says so
            self._pipe.send((function, arguments))
        self._unanswered.append(future)
        return future

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = DEFAULT_TIMEOUT_S) -> Any:
        """Run ``function(node, *arguments)`` in the worker and return its result."""
        return self.start(function, *arguments).result(timeout)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait_attached(self, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until it has attached to its node; raises what kept it from that."""
        self._attached.result(timeout)

    def _receive(self, left: float, timeout: float) -> None:
        """Take the next answer, within the seconds that are left of `timeout`."""
        if not self._pipe.poll(left):
            raise PageTimeoutError(
                f"worker {self.rank} (process {self.pid}) has not answered in {timeout:g} s"
            )
        try:
            data = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            status = _wait(self.process)
            raise NodeLostError(f"worker {self.rank} (process {self.pid}) ended with {status}") from None
        future = self._unanswered.popleft()
        try:
            future._answer = ForkingPickler.loads(data)
        except Exception as error:
            future._answer = False, WorkerFailed(f"the result cannot be read here: {error!r}")

    def _end(self) -> None:
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        _wait(self.process)


class ManagerProcess:
    """A manager process of a `Cluster`."""

    def __init__(
        self, secret: str, options: list[str], cpus: set[int] | None, host: Sequence[str] = ()
    ) -> None:
        ready, theirs = os.pipe()
        guard, self._guard = os.pipe()
        descriptors = ["--ready-fd", str(theirs), "--guard-fd", str(guard)]
        self.process = start(
            [*host, *manager_command(), *options, *descriptors],
            env=manager_environment(secret),
            pass_fds=[theirs, guard],
            own_group=True,
        )
        os.close(theirs)
        os.close(guard)
        try:
            self.node, self.socket, self.listen = wait_ready(ready, DEFAULT_TIMEOUT_S)
        except DSMError as error:
            self.end()
            raise type(error)(f"a manager did not start: {error}") from None
        finally:
            os.close(ready)
        if cpus is not None:
            os.sched_setaffinity(self.process.pid, cpus)

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def end(self) -> None:
        """End the process, politely first."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        _wait(self.process)


class Cluster:
    """Managers and workers on this machine, connected over loopback TCP or a network of their own.

    Parameters
    ----------
    nodes : int, default 1
        Managers.
    workers : int, default 1
        Workers of each node; ranks are dealt in blocks.
    cpus : set of int, optional
        Processors that every process may use; default: all.
    network : Network, optional
        Hosts for the nodes, whose links can be cut; default: loopback.

    Attributes
    ----------
    workers : list of Worker
        By rank.
    managers : list of ManagerProcess
        By node.
    """

    def __init__(
        self,
        nodes: int = 1,
        workers: int = 1,
        *,
        cpus: set[int] | None = None,
        network: Network | None = None,
    ) -> None:
        if nodes < 1 or workers < 0:
            raise UsageError(f"a cluster of {nodes} nodes with {workers} workers each cannot be started")
        self.managers: list[ManagerProcess] = []
        self.workers: list[Worker] = []
        secret = secrets.token_hex(32)
        size = nodes * workers
        hosts = [[] if network is None else network.command(node) for node in range(nodes)]
        try:
            for node in range(nodes):
                address = "127.0.0.1" if network is None else network.address(node)
                options = ["--listen", f"{address}:0", "--ranks", str(size)]
                if node:
                    options += ["--join", self.managers[0].listen]
                self.managers.append(ManagerProcess(secret, options, cpus, hosts[node]))
            for rank in range(size):
                node = rank // workers
                self.workers.append(Worker(self.managers[node].socket, rank, size, cpus, hosts[node]))
            for worker in self.workers:
                worker.wait_attached()
        except BaseException:
            self.close()
            raise

    def all(
        self, function: Callable[..., Any], *arguments: Any, timeout: float = DEFAULT_TIMEOUT_S
    ) -> list[Any]:
        """Run ``function(node, *arguments)`` in every worker at once; return the results by rank."""
        futures = [worker.start(function, *arguments) for worker in self.workers]
        return [future.result(timeout) for future in futures]

    def close(self) -> None:
        """End every process."""
        for worker in self.workers:
            worker._end()
        for manager in reversed(self.managers):
            manager.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wait(process: Process) -> int:
    """Wait for the process's end, and make it come; returns its exit code."""
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
