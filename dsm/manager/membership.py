"""Who belongs to the cluster: accepting, joining and losing nodes.

Owns the listening socket, connections that are not authenticated yet, and the links to the other
nodes.  Nothing a peer sends is parsed before it has proven that it knows the secret.  The node that
was started without ``--join`` is the coordinator; new nodes ask it, one after the other.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable

from dsm.errors import AuthenticationError, DSMError, UsageError, WireError, error_for
from dsm.limits import HANDSHAKE_TIMEOUT_S, MAX_HALF_OPEN
from dsm.manager.link import Link
from dsm.manager.loop import Loop
from dsm.wire import membership as meta
from dsm.wire.control import Failed
from dsm.wire.handshake import NO_CLUSTER, NO_NODE, NONCE_BYTES, Client, Server
from dsm.wire.header import Family, Fields, pack
from dsm.wire.membership import MetaKind

_BACKLOG = 128


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` (``[::1]:port`` for IPv6)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise WireError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


class HalfOpen:
    """A connection whose peer has not proven itself yet (server side)."""

    def __init__(self, sock: socket.socket, engine: Server) -> None:
        self.sock = sock
        self.engine = engine


class Membership:
    """Links of this node, and how they come and go.

    Parameters
    ----------
    loop
        The manager's loop.
    secret
        The cluster's secret.
    make_link
        Makes a `Link` of an authenticated socket.
    log
        Takes one line about what was refused and why.
    """

    def __init__(
        self,
        loop: Loop,
        secret: bytes,
        make_link: Callable[[socket.socket], Link],
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._secret = secret
        self._make_link = make_link
        self._log = log
        self._listener: socket.socket | None = None
        self._half_open: dict[int, HalfOpen] = {}
        self.node = 0
        self.epoch = 1
        self.cluster = secrets.token_bytes(16)
        self.address = ""
        #: Live links by node number.
        self.links: dict[int, Link] = {}
        #: Live nodes, this one among them, ascending.
        self.nodes: list[int] = [0]

    # -- listening ---------------------------------------------------------------------------------------

    def listen(self, text: str) -> None:
        """Accept other nodes at ``host:port``; port 0 picks a free one."""
        host, port = parse_address(text)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise UsageError(
                f"cannot listen on {text}: {error.strerror}; choose an address of this host and a free port"
            ) from None
        self._listener = listener
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{listener.getsockname()[1]}"

    def accept_peers(self) -> None:
        """Begin to answer who connects."""
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), self._accept)

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            for sock in self._loop.accept(self._listener, self._accept):
                self._begin(sock)
        except OSError as error:
            self._log(f"cannot accept a connection: {error.strerror}; trying again in a second")

    def _begin(self, sock: socket.socket) -> None:
        if len(self._half_open) >= MAX_HALF_OPEN:
            oldest = next(iter(self._half_open.values()))
            self._refuse(oldest, f"more than {MAX_HALF_OPEN} connections wait to be authenticated")
        nonce = secrets.token_bytes(NONCE_BYTES)
        engine = Server(self._secret, nonce, node=self.node, epoch=self.epoch, cluster=self.cluster)
        half = HalfOpen(sock, engine)
        fd = sock.fileno()
        self._half_open[fd] = half
        self._loop.watch(fd, lambda _: self._greet(half))
        self._loop.after(HANDSHAKE_TIMEOUT_S, lambda: self._late(half))

    def _greet(self, half: HalfOpen) -> None:
        try:
            data = half.sock.recv(4096)
            if not data:
                self._refuse(half, "the peer closed before it was authenticated")
                return
            reply = half.engine.feed(data)
            if reply:
                half.sock.send(reply)  # a few hundred bytes into an empty buffer
        except BlockingIOError:
            return
        except (DSMError, OSError) as error:
            with contextlib.suppress(OSError):
                half.sock.send(half.engine.refusal)
            self._refuse(half, str(error))
            return
        if half.engine.done:
            self._drop(half)
            assert half.engine.peer is not None
            link = self._make_link(half.sock)
            node = half.engine.peer.node
            if node != NO_NODE:
                self.adopt(node, link)
            if half.engine.leftover:
                link.reader.feed(half.engine.leftover)
                link.read()

    def _late(self, half: HalfOpen) -> None:
        if self._half_open.get(half.sock.fileno()) is half:
            self._refuse(half, f"no proof within {HANDSHAKE_TIMEOUT_S:g} s")

    def _refuse(self, half: HalfOpen, reason: str) -> None:
        name = "a peer"
        with contextlib.suppress(OSError):
            name = "{}:{}".format(*half.sock.getpeername()[:2])
        self._log(f"refused {name}: {reason}")
        self._drop(half)
        half.sock.close()

    def _drop(self, half: HalfOpen) -> None:
        fd = half.sock.fileno()
        self._half_open.pop(fd, None)
        self._loop.forget(fd)

    # -- joining (before the loop runs: this node serves nobody yet, so it may block) --------------------

    def join(self, text: str) -> meta.Welcome:
        """Ask the coordinator at ``host:port`` to take this node in, and connect to every member."""
        link = self._connect(text, 0, NO_NODE)
        join = meta.encode(meta.Join(self.address))
        self._tell(link, MetaKind.JOIN, join)
        fields, payload = self._blocking_message(link)
        welcome = meta.decode(fields[3], payload) if fields[2] == Family.METADATA else None
        if isinstance(welcome, meta.Told) and isinstance(welcome.body, Failed):
            raise error_for(welcome.body.status, welcome.body.message)
        if not isinstance(welcome, meta.Welcome):
            raise WireError(f"the coordinator answered a request to join with kind {fields[3]}")
        self.node = welcome.node
        self.epoch = welcome.epoch
        self.cluster = bytes.fromhex(welcome.cluster)
        for member in welcome.members:
            if member.node != 0:
                self._connect(member.address, member.node, welcome.node)
        self.nodes = sorted([member.node for member in welcome.members] + [welcome.node])
        self._tell(link, MetaKind.READY, b"")
        return welcome

    def _connect(self, text: str, node: int, claim: int) -> Link:
        """Connect and authenticate."""
        try:
            sock = socket.create_connection(parse_address(text), timeout=HANDSHAKE_TIMEOUT_S)
        except OSError as error:
            raise AuthenticationError(
                f"cannot connect to node {node} at {text}: {error}; is its manager running?"
            ) from None
        nonce = secrets.token_bytes(NONCE_BYTES)
        cluster = NO_CLUSTER if claim == NO_NODE else self.cluster
        client = Client(self._secret, nonce, node=claim, cluster=cluster)
        try:
            sock.sendall(client.start())
            while not client.done:
                data = sock.recv(4096)
                if not data:
                    raise AuthenticationError(f"node {node} at {text} closed the connection")
                sock.sendall(client.feed(data))
        except TimeoutError:
            raise AuthenticationError(
                f"node {node} at {text} did not answer within {HANDSHAKE_TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            raise AuthenticationError(f"node {node} at {text} broke the connection: {error}") from None
        if client.peer is None or client.peer.node != node:
            found = "nobody" if client.peer is None else f"node {client.peer.node}"
            raise AuthenticationError(
                f"{found} answers at {text}, where node {node} should be; "
                + ("join the node that was started without --join" if node == 0 else "was it started anew?")
            )
        link = self._make_link(sock)
        self.adopt(node, link)
        if client.leftover:
            link.reader.feed(client.leftover)
        return link

    def _blocking_message(self, link: Link) -> tuple[Fields, memoryview]:
        """Wait for one whole message on a link that the loop does not serve yet."""
        link.sock.settimeout(HANDSHAKE_TIMEOUT_S)
        try:
            while not link.reader.next():
                count = link.sock.recv_into(link.reader.space())
                if not count:
                    raise WireError("the coordinator closed the connection")
                link.reader.fill(count)
        except TimeoutError:
            raise WireError(
                f"the coordinator did not take this node in within {HANDSHAKE_TIMEOUT_S:g} s; "
                "another node may be joining, try again"
            ) from None
        link.sock.setblocking(False)
        return link.reader.fields, link.reader.payload

    def _tell(self, link: Link, kind: MetaKind, payload: bytes) -> None:
        link.send(self.header(kind, len(payload)), payload or None)
        link.flush()

    # -- links -------------------------------------------------------------------------------------------

    def header(self, kind: MetaKind, length: int, request: int = 0, region: int = 0) -> bytes:
        """Return the header of a metadata message."""
        return pack(Family.METADATA, kind, 0, self.node, self.epoch, length, region, 0, request, 0, 0)

    def adopt(self, node: int, link: Link) -> None:
        """From now on `link` is the link to `node`."""
        old = self.links.get(node)
        if old is not None:
            old.close()
        link.node = node
        self.links[node] = link

    def remove(self, link: Link) -> None:
        """A link is over."""
        if self.links.get(link.node) is link:
            del self.links[link.node]

    def forget(self, node: int) -> bool:
        """A node is no member any more; False when it was none."""
        if node not in self.nodes:
            return False
        self.nodes = [other for other in self.nodes if other != node]
        return True

    def close(self) -> None:
        """Close every socket."""
        for half in list(self._half_open.values()):
            self._drop(half)
            half.sock.close()
        for link in list(self.links.values()):
            link.close()
        if self._listener is not None:
            self._listener.close()
