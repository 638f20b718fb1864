"""Who belongs to the cluster: accepting and losing nodes (joining: `dsm.manager.joining`).

Owns the listening socket, connections that are not authenticated yet, and the links to the other
nodes.  Nothing a peer sends is parsed before it has proven that it knows the secret.  The node that
was started without ``--join`` is the coordinator; new nodes ask it, one after the other.

Numbers of nodes are given once and for all, ascending, by the coordinator, to one joining node at a
time.  So whoever connects with a number at or below one that this node knows is refused: it is an
impostor, or a node that was declared dead and has come to life again.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable

from dsm.errors import DSMError, InternalError, Status, UsageError
from dsm.limits import HANDSHAKE_TIMEOUT_S, JOIN_TIMEOUT_S, MAX_HALF_OPEN, MAX_JOINING
from dsm.manager.addresses import parse_address
from dsm.manager.joining import Joining
from dsm.manager.link import Link, Traffic
from dsm.manager.loop import Loop
from dsm.manager.notices import Notices
from dsm.wire import membership as meta
from dsm.wire.address import show_address
from dsm.wire.control import Failed
from dsm.wire.handshake import NO_NODE, NONCE_BYTES, Server
from dsm.wire.header import Family, pack
from dsm.wire.membership import MetaKind

_BACKLOG = 128


class HalfOpen:
    """A connection whose peer has not proven itself yet (server side)."""

    def __init__(self, sock: socket.socket, engine: Server) -> None:
        self.sock = sock
        self.engine = engine
        #: Who it is, for messages; a connection that was reset has no name any more.
        self.name = _name(sock)


def _name(sock: socket.socket) -> str:
    try:
        return show_address(*sock.getpeername()[:2])
    except OSError:
        return "a peer"


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
        #: What strangers can cause is said with measure.
        self._notices = Notices(log, lambda seconds, callback: self._loop.after(seconds, callback))
        self._listener: socket.socket | None = None
        self._half_open: dict[int, HalfOpen] = {}
        #: Authenticated connections of nodes without a number.
        self._outsiders: set[Link] = set()
        #: Links that must get on before their deadline, and the number of that deadline.
        self._overdue: dict[Link, int] = {}
        self._deadlines = 0
        self._joining = Joining(self, secret, make_link)
        self.node = 0
        self.epoch = 1
        self.cluster = secrets.token_bytes(16)
        self.address = ""
        #: Live links by node number.
        self.links: dict[int, Link] = {}
        #: Over links that have ended.
        self._past_traffic = Traffic()
        #: Live nodes, this one among them, ascending.
        self.nodes: list[int] = [0]
        #: Numbers below it are decided: those that are not in `nodes` are dead for good.
        self.decided = 1

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
        self.address = show_address(host, listener.getsockname()[1])

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
            self._notices.say(
                "connections that could not be accepted",
                f"cannot accept a connection: {error.strerror}; trying again in a second",
            )

    def _begin(self, sock: socket.socket) -> None:
        if len(self._half_open) >= MAX_HALF_OPEN:
            oldest = next(iter(self._half_open.values()))
            self._refuse(oldest, f"more than {MAX_HALF_OPEN} connections wait to be authenticated")
        nonce = secrets.token_bytes(NONCE_BYTES)
        us = {"node": self.node, "epoch": self.epoch}
        engine = Server(self._secret, nonce, **us, cluster=self.cluster, admits=self._objection)
        half = HalfOpen(sock, engine)
        fd = sock.fileno()
        self._half_open[fd] = half
        self._loop.watch(fd, lambda _: self._greet(half))
        self._loop.after(HANDSHAKE_TIMEOUT_S, lambda: self._late(half))

    def _objection(self, node: int) -> str | None:
        """Say why a node that knows the secret must not have this number; None when it may."""
        if node == NO_NODE:
            return None
        if self.node == 0:
            return f"the peer says it is node {node}; who joins connects to node 0 without a number"
        if node in self.nodes or node in self.links:
            return f"the peer says it is node {node}, which is connected here already"
        if node < self.decided:
            return f"the peer says it is node {node}, which was declared dead; numbers are not used again"
        if node < self.highest:
            return f"the peer says it is node {node}, but node {self.highest} was taken in since"
        return None

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
            self._authenticated(half)

    def _authenticated(self, half: HalfOpen) -> None:
        """A connection has become a link; nodes without a number must ask for one soon."""
        assert half.engine.peer is not None
        node = half.engine.peer.node
        link = self._make_link(half.sock)
        link.name = half.name
        if node != NO_NODE:
            self.adopt(node, link)
        else:
            self._outsiders.add(link)
            if len(self._outsiders) > MAX_JOINING:
                self._give_up(link, Status.LIMIT, f"{MAX_JOINING} nodes wait to join already; try later")
                return
            self.expect(link, f"it proved the secret, but did not ask to join within {JOIN_TIMEOUT_S:g} s")
        if half.engine.leftover:
            link.reader.feed(half.engine.leftover)
            link.read()

    # -- links that must get on --------------------------------------------------------------------------

    def expect(self, link: Link, reason: str) -> None:
        """Lose `link` for `reason` unless it is `settled`, or expected anew, within `JOIN_TIMEOUT_S`."""
        self._deadlines += 1
        number = self._overdue[link] = self._deadlines
        self._loop.after(JOIN_TIMEOUT_S, lambda: self._check(link, number, reason))

    def settled(self, link: Link) -> None:
        """`link` has done what it was expected to."""
        self._overdue.pop(link, None)

    def _check(self, link: Link, number: int, reason: str) -> None:
        if self._overdue.get(link) == number:
            self._give_up(link, Status.NODE_LOST, f"{reason}; start that node again")

    def _give_up(self, link: Link, status: Status, reason: str) -> None:
        """Close the connection of a node that is no member, and tell it why."""
        refusal = meta.encode(meta.Told(Failed(status, f"node {self.node} closed the connection: {reason}")))
        self.tell(link, MetaKind.REPLY, refusal)
        link.lose(reason)

    def outsider_lost(self, link: Link, reason: str) -> None:
        """Say that a connection ended that was no member's."""
        who = f"node {link.node} (it was joining)" if link.node >= 0 else link.name
        self._notices.say("lost connections", f"closed the connection of {who}: {reason}")

    def _late(self, half: HalfOpen) -> None:
        if self._half_open.get(half.sock.fileno()) is half:
            self._refuse(half, f"no proof within {HANDSHAKE_TIMEOUT_S:g} s")

    def _refuse(self, half: HalfOpen, reason: str) -> None:
        self._notices.say("refused connections", f"refused {half.name}: {reason}")
        self._drop(half)
        half.sock.close()

    def _drop(self, half: HalfOpen) -> None:
        fd = half.sock.fileno()
        self._half_open.pop(fd, None)
        self._loop.forget(fd)

    # -- joining -----------------------------------------------------------------------------------------

    def join(self, text: str) -> meta.Welcome:
        """Ask the coordinator at ``host:port`` to take this node in, and connect to every member."""
        return self._joining.join(text)

    def replay(self) -> None:
        """Handle what came before the loop ran, in its order."""
        self._joining.replay()

    # -- links -------------------------------------------------------------------------------------------

    def header(self, kind: MetaKind, length: int, request: int = 0, region: int = 0) -> bytes:
        """Return the header of a metadata message."""
        return pack(Family.METADATA, kind, 0, self.node, self.epoch, length, region, 0, request, 0, 0)

    def tell(self, link: Link, kind: MetaKind, payload: bytes) -> None:
        """Send a metadata message at once."""
        link.send(self.header(kind, len(payload)), payload or None)
        link.flush()

    @property
    def highest(self) -> int:
        """The highest number of a node that this node knows of."""
        return max(self.decided - 1, self.node, *self.links)

    def adopt(self, node: int, link: Link) -> None:
        """From now on `link` is the link to `node`, which had none before."""
        if node in self.links:
            raise InternalError(f"node {node} has a link already")
        self._outsiders.discard(link)
        link.node = node
        self.links[node] = link

    def decide(self, decided: int) -> list[Link]:
        """Numbers below `decided` are decided; return the links of those that did not become members."""
        self.decided = max(self.decided, decided, self.nodes[-1] + 1)
        return [link for node, link in self.links.items() if node < self.decided and node not in self.nodes]

    def unreachable(self) -> list[int]:
        """Return the members to which this node has no link."""
        return [node for node in self.nodes if node != self.node and node not in self.links]

    def remove(self, link: Link) -> None:
        """A link is over."""
        self._outsiders.discard(link)
        self._overdue.pop(link, None)
        if self.links.get(link.node) is link:
            del self.links[link.node]
            self._past_traffic.add(link.traffic)

    def traffic(self) -> Traffic:
        """Return what was exchanged with other nodes, also with those that have gone."""
        total = Traffic()
        for part in (self._past_traffic, *(link.traffic for link in self.links.values())):
            total.add(part)
        return total

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
        for link in [*self.links.values(), *self._outsiders]:
            link.close()
        if self._listener is not None:
            self._listener.close()
