"""`Server`: the lease service of a node, in a thread of this process.

Owns where it listens, its memory and its thread; the work is done by `dsm.server.service`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import ipaddress
import os
import socket
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

from dsm.errors import ClosedError, DSMError, LimitError, UsageError
from dsm.limits import OS_PAGE_BYTES
from dsm.log import logger
from dsm.server.cluster import Cluster
from dsm.server.memory import Memory
from dsm.server.service import Service
from dsm.units import bytes_of
from dsm.wire.address import parse_address, show_address
from dsm.wire.secret import checked_secret
from dsm.worker.watcher import leave_signals

if TYPE_CHECKING:
    from dsm.worker.node import Node

_BACKLOG = 1024
#: What a machine without IPv6 says of its addresses.
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Server:
    """Leases memory to clients over TCP: `dsm.connect`, the shell's ``dsm lease``, any program.

    Parameters
    ----------
    listen
        ``HOST:PORT``; port 0 takes a free one (see `address`).  Without a host: all addresses when there
        is a secret, else those of the loopback.
    size
        Bytes to lease, or text as in ``"2G"``; whole pages are taken.  The system backs only what has been
        written.
    secret
        What clients must know, at least 16 bytes.  Without one only this machine's users are served: `listen`
        must be an address of the loopback.
    node
        The node whose memory it is; default: `dsm.attach`.

    Raises
    ------
    UsageError
        An argument is wrong, or there is no secret and others could connect.
    LimitError
        The address is taken, or there is no room.

    Examples
    --------
    >>> with dsm.Server(size="64M") as server:  # doctest: +SKIP
    ...     client = dsm.connect(server.address)
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        size: int | str = "2G",
        secret: str | bytes | None = None,
        node: Node | None = None,
    ) -> None:
        self._listen = parse_address(listen, "listen")
        self._nbytes = -(-bytes_of(size) // OS_PAGE_BYTES) * OS_PAGE_BYTES
        if not self._nbytes:
            raise UsageError("size is 0; a server needs memory to lease")
        self._secret = None if secret is None else checked_secret(secret, "secret=")
        if self._secret is None and not _is_loopback(self._listen[0]):
            raise UsageError(
                f"listen is {listen!r}: others can reach that, and there is no secret; pass secret= "
                "(`dsm serve --secret-file F`), or listen on 127.0.0.1"
            )
        if node is not None:
            _check_node(node)
        self._node = node
        self._thread: threading.Thread | None = None
        self._service: Service | None = None
        self._memory: Memory | None = None
        self._addresses: list[str] = []
        self._error: BaseException | None = None
        self._mutex = threading.Lock()
        #: Set when the loop has ended, whyever.
        self.ended = threading.Event()

    # -- life --------------------------------------------------------------------------------------------

    def start(self) -> Server:
        """Begin to serve, in a thread; a server that was closed can be started again, with no leases."""
        with self._mutex:
            if self._thread is not None:
                raise UsageError("the server runs already; close it first, or make another one")
            if self._node is None or self._node.closed:
                from dsm.worker.attach import attach

                self._node = attach()
            with contextlib.ExitStack() as undo:
                listeners = _bind(*self._listen, open_to_all=self._secret is not None)
                for listener in listeners:
                    undo.callback(listener.close)
                memory = Memory(self._node, self._nbytes)
                undo.callback(memory.close)
                service = Service(listeners, memory, self._secret)
                undo.callback(service.close)
                service.cluster = Cluster(self._node, service)
                undo.pop_all()
            self._memory, self._service = memory, service
            self._addresses = [show_address(*each.getsockname()[:2]) for each in listeners]
            self._error = None
            self.ended.clear()
            self._thread = threading.Thread(target=self._run, args=(service,), name="dsm-server", daemon=True)
            self._thread.start()
            atexit.register(self.close)  # before the node, which was there first
            _running.add(self)
        return self

    def _run(self, service: Service) -> None:
        leave_signals()
        try:
            service.run()
        except BaseException as error:
            self._error = error
            logger.error("the lease server at %s has ended: %s", self.address, error)
        finally:
            service.ended.set()
            try:
                with contextlib.suppress(DSMError):
                    service.close()
            finally:
                self.ended.set()

    def close(self) -> None:
        """End the service and every lease; connections are closed.  Closing twice is allowed."""
        with self._mutex:
            thread, self._thread = self._thread, None
            if thread is None or self._service is None or self._memory is None:
                return
            atexit.unregister(self.close)
            _running.discard(self)
            self._service.stop()
            thread.join()
            if self._service.cluster is not None:
                self._service.cluster.close()
            self._memory.close()
            self._service = self._memory = None

    def _after_fork(self) -> None:
        self._mutex = threading.Lock()
        if self._service is not None:
            self._service.abandon()
        self._thread = self._service = self._memory = None

    @property
    def error(self) -> BaseException | None:
        """Why the service ended by itself; None while it runs, or after `close`."""
        return self._error

    # -- questions ---------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``: what `dsm.connect` takes."""
        return self._addresses[0] if self._addresses else show_address(*self._listen)

    @property
    def addresses(self) -> list[str]:
        """All of them."""
        return list(self._addresses)

    @property
    def size(self) -> int:
        """Bytes to lease."""
        return self._nbytes

    @property
    def node(self) -> Node | None:
        """The node whose memory it is; None before `start` when none was given."""
        return self._node

    def figures(self) -> dict[str, int]:
        """Return the figures that `LeaseClient.figures` returns.

        Raises
        ------
        ClosedError
            It does not run.
        """
        service = self._service
        if service is None or self._error is not None:
            raise ClosedError("the server does not run; call start()")
        return service.ask(service.figures)

    def __enter__(self) -> Server:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "not started" if self._thread is None else "running"
        return f"<dsm.Server at {self.address}: {self._nbytes} bytes, {state}>"


_running: weakref.WeakSet[Server] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: servers are the parent's, and their sockets must not stay open here."""
    for server in list(_running):
        server._after_fork()
    _running.clear()


os.register_at_fork(after_in_child=_after_fork)


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_node(node: object) -> None:
    from dsm.worker.node import Node

    if not isinstance(node, Node):
        raise UsageError(f"node is {type(node).__name__}; pass what dsm.attach() returned")


def _bind(host: str, port: int, open_to_all: bool) -> list[socket.socket]:
    """Return listening sockets for all addresses of a host, with one port."""
    if not host:
        host = "" if open_to_all else "localhost"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"listen: there is no host {host!r}: {error.strerror}") from None
    listeners: list[socket.socket] = []
    last: OSError | None = None
    # One address each, IPv4 first: it is what a name is tried with first on a machine without IPv6.
    for family, kind, protocol, _, address in sorted(set(found), key=lambda each: each[0] != socket.AF_INET):
        if listeners and port == 0:
            address = (address[0], listeners[0].getsockname()[1], *address[2:])
        try:
            listeners.append(_listener(family, kind, protocol, address))
        except OSError as error:
            last = error
            if error.errno not in _NO_SUCH_FAMILY:
                break
    else:
        last = None if listeners else last
    if last is not None:
        for listener in listeners:
            listener.close()
        raise LimitError(
            f"cannot listen on {show_address(host, port)}: {last.strerror}; choose another address, or port 0"
        )
    return listeners


def _listener(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
