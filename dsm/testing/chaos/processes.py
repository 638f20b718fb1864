"""Managers and workers of one job.

Owns how they are started: on the hosts of a `Network` or on loopback, with their output in files, and so that
all of them end when this process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dsm.launch.processes import signal_name
from dsm.manager_process import manager_environment
from dsm.testing.chaos.plan import PAGE_TIMEOUT_S, JobPlan
from dsm.testing.chaos.program import Options
from dsm.testing.chaos.remains import MARK
from dsm.testing.network import Network
from dsm.worker.startup import wait_ready

_START_S = 30.0


class Child:
    """A process of the job; `status` is negative for a signal, as in `subprocess`."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], errors: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.popen = popen
        self._errors = errors
        #: When it was seen to have ended.
        self.ended_ns = 0

    @property
    def status(self) -> int | None:
        """How it ended, or None."""
        status = self.popen.poll()
        if status is not None and not self.ended_ns:
            self.ended_ns = time.monotonic_ns()
        return status

    def signal(self, number: int) -> bool:
        """Signal it; False when it has ended."""
        if self.status is not None:
            return False
        self.popen.send_signal(number)
        return True

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text(errors="replace")

    def describe_end(self) -> str:
        """Say how it ended."""
        status = self.status
        if status is None:
            return "still runs"
        return signal_name(-status) if status < 0 else f"status {status}"


class Processes:
    """All processes of a job."""

    def __init__(self, plan: JobPlan, folder: Path, mark: str, network: Network | None) -> None:
        self._plan = plan
        self._folder = folder
        self._network = network
        self._guards: list[int] = []
        self.managers: list[Child] = []
        self.workers: list[Child] = []
        #: Where managers listen, and their local sockets.
        self.ports: set[int] = set()
        self.sockets: list[str] = []
        temporary = folder / "tmp"
        temporary.mkdir()
        self._environment = {
            MARK: mark,
            "DSM_PAGE_TIMEOUT": str(PAGE_TIMEOUT_S),
            "TMPDIR": str(temporary),
            "OMP_NUM_THREADS": "1",
        }

    def journal(self, rank: int) -> Path:
        """Return where a worker writes down what it does."""
        return self._folder / f"journal-{rank}"

    def start(self) -> None:
        """Start everything; returns when the managers serve."""
        secret = os.urandom(16).hex()
        first = ""
        for node in range(self._plan.nodes):
            host = "127.0.0.1" if self._network is None else self._network.address(node)
            options = ["--listen", f"{host}:0", "--ranks", str(self._plan.nodes * self._plan.workers)]
            listen = self._start_manager(node, [*options, *(["--join", first] if node else [])], secret)
            first = first or listen
        for rank in range(self._plan.nodes * self._plan.workers):
            self._start_worker(rank)

    def _start_manager(self, node: int, options: list[str], secret: str) -> str:
        ready, theirs = os.pipe()
        guard, ours = os.pipe()
        self._guards.append(ours)
        command = [sys.executable, "-P", "-m", "dsm.testing.chaos.manager", *options]
        command += ["--ready-fd", str(theirs), "--guard-fd", str(guard)]
        try:
            self.managers.append(
                self._start(
                    f"manager of node {node}", node, command, manager_environment(secret), (theirs, guard)
                )
            )
        finally:
            os.close(theirs)
            os.close(guard)
        try:
            _, socket, listen = wait_ready(ready, _START_S)
        finally:
            os.close(ready)
        self.sockets.append(socket)
        self.ports.add(int(listen.rpartition(":")[2]))
        return listen

    def _start_worker(self, rank: int) -> None:
        plan = self._plan
        node = plan.node_of(rank)
        place = {
            "DSM_NODE": self.sockets[node], "DSM_RANK": str(rank), "DSM_SIZE": str(plan.nodes * plan.workers),
        }  # fmt: skip
        options = Options(seed=plan.seed, home=plan.home, page_size=plan.page_size)
        words = [str(self.journal(rank)), json.dumps(options), str(os.getpid())]
        command = [sys.executable, "-P", "-m", "dsm.testing.chaos.program", *words]
        self.workers.append(self._start(f"worker {rank}", node, command, manager_environment() | place))

    def _start(
        self, name: str, node: int, command: list[str], environment: dict[str, str], fds: Sequence[int] = ()
    ) -> Child:
        errors = self._folder / f"{name.replace(' ', '-')}.err"
        host = self._network.command(node) if self._network else []
        with errors.open("wb") as file:
            popen = subprocess.Popen(
                [*host, *command],
                pass_fds=fds,
                env=environment | self._environment,
                stdin=subprocess.PIPE if name.startswith("worker") else subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,
            )
        return Child(name, popen, errors)

    def tell(self, rank: int, command: str) -> None:
        """Write a line to a worker's standard input."""
        stream = self.workers[rank].popen.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            stream.write(f"{command}\n".encode())
            stream.flush()

    @property
    def all(self) -> list[Child]:
        """Every process."""
        return [*self.managers, *self.workers]

    def ask_managers_to_end(self) -> None:
        """As `dsm run` does at the end of a job: the first node, which has the metadata, comes last."""
        for number, manager in reversed(list(enumerate(self.managers))):
            if manager.signal(signal.SIGTERM) and number:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    manager.popen.wait(2.0)

    def stacks(self) -> str:
        """Return where every process stands, as its own fault handler and the kernel say."""
        for child in self.all:
            child.signal(signal.SIGCONT)
            child.signal(signal.SIGUSR1)
        time.sleep(0.5)
        told = []
        for child in self.all:
            told.append(f"--- {child.name} (process {child.pid}): {child.describe_end()}")
            with contextlib.suppress(OSError):
                told.append("in the kernel: " + Path(f"/proc/{child.pid}/wchan").read_text())
            told.append(child.said[-6000:])
        return "\n".join(told)

    def end(self) -> None:
        """Kill what still runs, and take every zombie away."""
        for child in self.all:
            child.signal(signal.SIGKILL)
        for child in self.all:
            child.popen.wait()
            if child.popen.stdin is not None:
                with contextlib.suppress(OSError):
                    child.popen.stdin.close()
        for guard in self._guards:
            os.close(guard)
        self._guards.clear()
