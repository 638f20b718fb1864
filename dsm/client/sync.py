"""`connect` and `LeaseClient`: the lease service for programs that wait for each answer.

Owns the calls that are about a server as a whole; those about one lease are in `dsm.client.lease`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from dsm.callbacks import checked_callback
from dsm.client import calls, failures
from dsm.client.connection import Connection
from dsm.client.lease import RemoteLease
from dsm.client.options import Secret, checked_timeout, server_address, server_secret
from dsm.client.pipeline import Pipeline
from dsm.units import bytes_of, milliseconds_of
from dsm.wire import leases as wire
from dsm.wire.address import show_address
from dsm.wire.leases import Op

if TYPE_CHECKING:
    from dsm.client.expiry import Watcher


def connect(
    address: str | None = None, *, secret: Secret = None, timeout: float | None = 30.0
) -> LeaseClient:
    """Connect to a lease server.

    Parameters
    ----------
    address
        ``HOST:PORT``, as in ``"127.0.0.1:7412"`` or ``"[::1]:7412"``; default: DSM_SERVER, else port 7412 of
        this machine.
    secret
        The server's secret; default: DSM_SECRET, or what DSM_SECRET_FILE names.  A client with a secret talks
        to no server that asks for none; False: there is none.
    timeout
        Seconds that the server may be silent while an answer is due; None: without end.

    Returns
    -------
    LeaseClient
        Connected; also a context manager.

    Raises
    ------
    NodeLostError
        Nobody answers there.
    AuthenticationError
        The secrets differ, or only one side has one.
    WaitTimeoutError
        The server did not answer in time.
    UsageError
        An argument is wrong.

    Examples
    --------
    >>> with dsm.connect("127.0.0.1:7412") as client:  # doctest: +SKIP
    ...     with client.lease("1K", "60s") as lease:
    ...         lease.set(b"hello")
    ...         print(lease.get(0, 5), lease.token)
    """
    connection = Connection(server_address(address), server_secret(secret), checked_timeout(timeout))
    with connection.lock:
        connection.open()
    return LeaseClient(connection)


class LeaseClient:
    """A persistent connection to a lease server; made by `connect`.

    May be used by several threads, which take turns; `clone` gives a connection of its own.  What interrupts
    a call in its own thread (handlers of signals, ``__del__``) may close the client; to ask it needs a clone,
    and gets a `UsageError` without.

    A connection that broke is made again by the next call.  A call in which it breaks is repeated once if it
    surely did not reach the server or may be done twice (get, set, renew and all questions); `lease` and
    `release` raise `NodeLostError` then, because nobody knows whether they happened.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watcher: Watcher | None = None
        self._mutex = threading.RLock()  # handlers of signals may close the client
        _clients.add(self)

    @property
    def address(self) -> str:
        """The server, as ``HOST:PORT``."""
        return show_address(*self._connection.address)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._connection.closed

    # -- leases ------------------------------------------------------------------------------------------

    def lease(self, nbytes: int | str, duration: float | str) -> RemoteLease:
        """Lease memory for a time.

        Parameters
        ----------
        nbytes
            Bytes, or text as in ``"64K"``.  They are zeros.
        duration
            Seconds, or text as in ``"60s"``, ``"250ms"``, ``"5m"``.

        Raises
        ------
        FullError
            There is no room now.
        TooLargeError
            There never is, for so much.
        UsageError
            An argument is wrong.
        """
        size, milliseconds = bytes_of(nbytes, "nbytes"), milliseconds_of(duration)
        payload, granted, remaining = self._connection.ask(
            Op.LEASE, offset=milliseconds, count=size, most=wire.KEYS.size
        )
        return RemoteLease(self, *calls.opened(payload), granted, remaining)

    def open(self, token: str) -> RemoteLease:
        """Return the lease that a token stands for.

        Raises
        ------
        LeaseExpiredError
            It has ended.
        UnknownLeaseError
            The server has no lease with that id and key.
        UsageError
            The text is no token.
        """
        payload, _, _ = self._connection.ask(Op.INFO, token=calls.shown(token), most=wire.ROW.size)
        return RemoteLease(self, *calls.described(token, payload))

    def leases(self) -> list[calls.LeaseInfo]:
        """Return the server's leases, soonest end first; their keys are not told."""
        found: list[calls.LeaseInfo] = []
        while True:
            payload, total, _ = self._connection.ask(
                Op.LIST, offset=len(found), count=calls.ROWS_AT_ONCE, most=calls.ROWS_BYTES
            )
            part = calls.infos(payload)
            found += part
            if not part or len(found) >= total:
                return found

    def figures(self) -> dict[str, int]:
        """Return the server's figures by name: bytes used and free, leases, what was counted."""
        return wire.unpack_figures(self._connection.ask(Op.FIGURES, most=calls.FIGURES_BYTES)[0])

    def ping(self) -> float:
        """Return the seconds that a question and its answer take."""
        start = time.perf_counter()
        self._connection.ask(Op.PING)
        return time.perf_counter() - start

    def pipeline(self) -> Pipeline:
        """Return a context manager that gathers requests and sends them together at its end."""
        return Pipeline(self._connection)

    # -- life --------------------------------------------------------------------------------------------

    def clone(self) -> LeaseClient:
        """Return a client of the same server with a connection of its own, for another thread."""
        mine = self._connection
        connection = Connection(mine.address, mine.secret, mine.timeout)
        with connection.lock:
            connection.open()
        return LeaseClient(connection)

    def close(self) -> None:
        """Close the connection; leases go on until they end.  Closing twice is allowed."""
        self._connection.close()  # from now on there is no new watcher
        with self._mutex:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def __enter__(self) -> LeaseClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dsm.LeaseClient of {self.address}{', closed' if self.closed else ''}>"

    # -- used by leases ----------------------------------------------------------------------------------

    def _renew(self, token: bytes, milliseconds: int) -> None:
        self._connection.ask(Op.RENEW, token=token, offset=milliseconds)

    def _release(self, token: bytes) -> None:
        self._connection.ask(Op.RELEASE, token=token)

    def _watch(self, lease: RemoteLease, callback: Callable[[RemoteLease], object]) -> None:
        from dsm.client.expiry import Watcher

        checked_callback(callback)
        with self._mutex:
            if self.closed:
                raise failures.closed()
            if self._watcher is None:
                mine = self._connection
                self._watcher = Watcher(Connection(mine.address, mine.secret, mine.timeout))
            self._watcher.add(lease, callback)

    def _timed(self, lease: RemoteLease, deadline: float) -> None:
        """A lease was renewed or released by its handle, and lasts until then."""
        with self._mutex:
            if self._watcher is None:
                lease._deadline = deadline
            else:
                self._watcher.lasts_until(lease, deadline)

    def _after_fork(self) -> None:
        self._mutex = threading.RLock()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.forget()
        self._connection.forget()


_clients: weakref.WeakSet[LeaseClient] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: connections are the parent's, each client makes its own."""
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork)
