"""The managers of one run: started together, watched, ended in the order of their dependence.

Owns the nodes of a job on this machine.  What it means for the job when one breaks is decided by
whoever gives `failed`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence

from dsm import log
from dsm.launch.loop import Loop
from dsm.launch.managers import Manager
from dsm.launch.output import Relay, Sink
from dsm.manager_process import manager_environment
from dsm.wire.secret import make_secret

#: Seconds in which a manager must end when it is asked to.
END_S = 2.0
_LOCAL = "127.0.0.1:0"


class Cluster:
    """The managers of `nodes` nodes; `failed(manager, message)` is called when one does not serve."""

    def __init__(
        self,
        loop: Loop,
        sink: Sink,
        command: Sequence[str],
        nodes: int,
        failed: Callable[[Manager | None, str], None],
    ) -> None:
        self._loop = loop
        self._sink = sink
        self._command = list(command)
        self._nodes = nodes
        self._failed = failed
        # One node alone listens nowhere, so it needs no secret.
        self._environment = manager_environment(make_secret() if nodes > 1 else None)
        self._managers: list[Manager] = []
        self._relays: list[Relay] = []
        self._ending = False

    def __iter__(self) -> Iterator[Manager]:
        """Iterate over the managers in the order of their nodes (of their start until all are ready)."""
        return iter(self._managers)

    @property
    def pids(self) -> list[int]:
        """Process numbers of all managers."""
        return [manager.pid for manager in self._managers]

    def start_first(self) -> None:
        """Start node 0, which the others join."""
        self._start(["--listen", _LOCAL] if self._nodes > 1 else [])

    def start_others(self) -> None:
        """Start all other nodes at once; node 0 is ready."""
        for _ in range(self._nodes - 1):
            self._start(["--listen", _LOCAL, "--join", self._managers[0].listen])

    def _start(self, options: list[str]) -> None:
        number = len(self._managers)
        try:
            manager = Manager(self._loop, [*self._command, *options], self._environment, self._ready)
        except OSError as error:
            self._failed(None, f"cannot start the manager of node {number}: {error.strerror}")
            return
        self._managers.append(manager)
        prefix = b"manager of node %d: " % number
        self._relays += [Relay(self._loop, fd, self._sink, prefix) for fd in manager.outputs]
        self._loop.add(manager.pidfd, lambda: self._ended(manager))

    @property
    def ready(self) -> bool:
        """True when every manager that was started serves."""
        return all(manager.socket for manager in self._managers)

    def _ready(self, manager: Manager) -> None:
        if not manager.error:
            log.logger.info("node %d is process %d, %s", manager.node, manager.pid, manager.socket)
            if self.ready:
                self._managers.sort(key=lambda manager: manager.node)
            return
        for relay in self._relays:  # its traceback comes before our line
            relay.drain()
        number = self._managers.index(manager)
        self._failed(manager, f"the manager of node {number} did not start: {manager.error}")

    def _ended(self, manager: Manager) -> None:
        if not manager.look():
            return
        self._loop.remove(manager.pidfd)
        end = manager.describe_end()
        if manager.socket and not self._ending:
            self._failed(manager, f"the manager of node {manager.node} ended with {end} before its workers")
        elif not manager.socket and not manager.error:
            manager.error = f"it ended with {end} before it was ready"
            self._ready(manager)

    def guard(self, group: int) -> None:
        """Have every manager kill process group `group` when we are gone."""
        for manager in self._managers:
            manager.guard(group)

    def tell(self, number: int) -> None:
        """Signal every manager."""
        for manager in self._managers:
            manager.signal_group(number)

    def end(self) -> None:
        """End all managers and wait until they are gone; node 0 holds the metadata and goes last.

        That their peers leave is no news any more: what they say now is not shown.
        """
        self._ending = True
        for relay in self._relays:
            relay.drain()
            relay.mute()
        for managers in (self._managers[1:], self._managers[:1]):
            for manager in managers:
                manager.signal_group(signal.SIGTERM)
                manager.signal_group(signal.SIGCONT)

            def gone(managers: Sequence[Manager] = managers) -> bool:
                return all(manager.look() for manager in managers)

            if not self._loop.run_until(gone, END_S):
                for manager in managers:
                    manager.signal_group(signal.SIGKILL)
                self._loop.run_until(gone)
        for relay in self._relays:
            relay.close()
        for manager in self._managers:
            self._loop.remove(manager.pidfd)
            manager.close()
            manager.reap()
