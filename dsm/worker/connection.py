"""What one attachment to a node owns: session, boards, descriptors and the thread that watches them.

Owns opening and closing of all of it together, and forgetting it in a child of fork.  It does not
know regions or the user's API.
"""

from __future__ import annotations

import contextlib
import os

from dsm import _native, limits, proc
from dsm.errors import ClosedError, NodeLostError, Status
from dsm.wire import control
from dsm.worker import session
from dsm.worker.raising import PAUSE_NS, Raiser
from dsm.worker.watcher import Watcher


class Connection:
    """An attachment of this process to the node at `address`.

    Parameters
    ----------
    address
        ``@dsm-<hex>``.
    rank
        Given by a launcher, or None.
    raiser
        Of this process.
    forked
        This is a child of fork: the rank is its parent's.

    Raises
    ------
    OSError
        When nobody listens at `address`.
    NodeLostError
        When the manager went away while this process attached.
    """

    def __init__(self, address: str, rank: int | None, raiser: Raiser, forked: bool = False) -> None:
        self.address = address
        #: As given, for attaching again in a child of fork.
        self.asked_rank = rank
        self.raiser = raiser
        self.session = session.connect(address)
        self._watcher = Watcher({self.session.fileno(): self.session.receive})
        self._descriptors: tuple[int, ...] = ()
        try:
            attach = control.Attach(os.getpid(), rank, forked)
            self.attached, received = self.session.call(attach, control.Attached)
            node_fd, worker_fd, bell_fd, nudge_fd = received.take(4)
            self._descriptors = (node_fd, worker_fd, bell_fd, nudge_fd)
            pidfd = self._open_pidfd(self.attached.manager_pid)
            self._descriptors += (pidfd,)
            _native.worker_statuses(Status.NODE_LOST, Status.CLOSED, Status.LIMIT)
            _native.worker_start(
                node_fd=node_fd,
                worker_fd=worker_fd,
                bell_fd=bell_fd,
                nudge_fd=nudge_fd,
                manager_pidfd=pidfd,
                error_fd=raiser.error_fd,
                spin_ns=limits.SPIN_NS,
                map_limit=_map_limit(),
                error_pause_ns=PAUSE_NS,
            )
        except BaseException:
            self._release()
            raise

    def _open_pidfd(self, pid: int) -> int:
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            raise NodeLostError(
                f"the manager at {self.address} (process {pid}) ended while this one attached"
            ) from None

    @property
    def lost(self) -> bool:
        """Whether the manager has gone."""
        return self.session.lost

    def close(self, failed: bool = False) -> None:
        """Leave the node: its memory becomes closed, waits end, threads end.

        With `failed` it counts as the death of this worker: those who would meet it at barriers are told.
        """
        _native.worker_stop()
        if not failed:
            self.announce_end()
        self._release()

    def announce_end(self) -> None:
        """Say that this worker ends on its own: its end is no death."""
        with contextlib.suppress(NodeLostError):
            self.session.post(control.Leave())

    def _release(self) -> None:
        self.session.lose(ClosedError("this process has closed its node; call dsm.attach() again"))
        self._watcher.stop()
        self.session.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        descriptors, self._descriptors = self._descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def forget(self) -> None:
        """In a child of fork: close the parent's descriptors here; the parent notices nothing."""
        self.session.close()
        self._watcher.forget()
        self._close_descriptors()


def _map_limit() -> int:
    """Return how many memory maps the shim may let this process have."""
    allowed = proc.max_map_count()
    return max(allowed - limits.VMA_RESERVE, allowed // 2)
