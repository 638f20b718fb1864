"""Becoming a member: what a new node asks and hears before its loop runs.

It serves nobody yet, so it may block.  Owns the connections that a node makes (those that it accepts:
`dsm.manager.membership`), and what the coordinator says before the loop can take it.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from dsm.errors import AuthenticationError, NodeLostError, WireError, error_for
from dsm.limits import HANDSHAKE_TIMEOUT_S, JOIN_TIMEOUT_S, JOIN_WAIT_S
from dsm.manager import border
from dsm.manager.addresses import announced, parse_address
from dsm.manager.link import Link
from dsm.wire import membership as meta
from dsm.wire.control import Failed
from dsm.wire.handshake import NO_CLUSTER, NO_NODE, NONCE_BYTES, Client
from dsm.wire.header import Family, Fields
from dsm.wire.membership import MetaKind

if TYPE_CHECKING:
    from dsm.manager.membership import Membership

_Body = TypeVar("_Body", meta.Welcome, meta.Members)


class Joining:
    """A node's way into a cluster.

    Parameters
    ----------
    members
        What the node knows of the cluster; it is filled in.
    secret
        The cluster's secret.
    make_link
        Makes a `Link` of an authenticated socket.
    """

    def __init__(
        self, members: Membership, secret: bytes, make_link: Callable[[socket.socket], Link]
    ) -> None:
        self._members = members
        self._secret = secret
        self._make_link = make_link
        #: What the coordinator said between `join` and the first round of the loop.
        self._early: list[tuple[Fields, bytes]] = []

    def join(self, text: str) -> meta.Welcome:
        """Ask the coordinator at ``host:port`` to take this node in, and connect to every member."""
        members = self._members
        link = self._connect(text, 0, NO_NODE)
        join = meta.encode(meta.Join(announced(members.address, link.sock.getsockname()[0])))
        members.tell(link, MetaKind.JOIN, join)
        welcome = self._wait_for(link, meta.Welcome, JOIN_WAIT_S)
        border.metadata(welcome, welcome.node)
        members.node = welcome.node
        members.epoch = welcome.epoch
        members.cluster = bytes.fromhex(welcome.cluster)
        for member in welcome.members:
            if member.node != 0:
                self._connect(member.address, member.node, welcome.node)
        members.nodes = sorted([member.node for member in welcome.members] + [welcome.node])
        members.decided = welcome.node + 1
        members.tell(link, MetaKind.READY, b"")
        self._wait_for(link, meta.Members, JOIN_TIMEOUT_S)
        return welcome

    def replay(self) -> None:
        """Handle what came before the loop ran, in its order."""
        early, self._early = self._early, []
        for fields, payload in early:
            if 0 in self._members.links:
                self._members.links[0].take(fields, payload)

    def _wait_for(self, link: Link, expected: type[_Body], seconds: float) -> _Body:
        """Return the coordinator's message of that type; others, and MEMBERS, are kept for `replay`."""
        deadline = time.monotonic() + seconds
        while True:
            fields, payload = self._blocking_message(link, deadline)
            kind = fields[3]
            if fields[2] != Family.METADATA:
                raise WireError("the coordinator sent pages or calls to a node that has not joined")
            try:
                body = meta.decode(kind, payload)
            except msgspec.MsgspecError as error:
                raise WireError(f"a metadata message of kind {kind} is malformed: {error}") from None
            if isinstance(body, meta.Told) and isinstance(body.body, Failed):
                raise error_for(body.body.status, body.body.message)
            if isinstance(body, expected) and not isinstance(body, meta.Members):
                return body
            if isinstance(body, meta.Members) and self._members.node not in body.nodes:
                continue  # somebody else came or went meanwhile; the one that takes us in says it, too
            self._early.append((fields, bytes(payload)))
            if isinstance(body, expected):
                return body
            if expected is meta.Welcome:
                raise WireError(f"the coordinator answered a request to join with kind {kind}")

    def _connect(self, text: str, node: int, claim: int) -> Link:
        """Connect and authenticate."""
        try:
            sock = socket.create_connection(parse_address(text), timeout=HANDSHAKE_TIMEOUT_S)
        except OSError as error:
            raise AuthenticationError(
                f"cannot connect to node {node} at {text}: {error}; is its manager running?"
            ) from None
        nonce = secrets.token_bytes(NONCE_BYTES)
        cluster = NO_CLUSTER if claim == NO_NODE else self._members.cluster
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
        self._members.adopt(node, link)
        if client.leftover:
            link.reader.feed(client.leftover)
        return link

    def _blocking_message(self, link: Link, deadline: float) -> tuple[Fields, memoryview]:
        """Wait for one whole message on a link that the loop does not serve yet."""
        try:
            while not link.reader.next():
                link.sock.settimeout(max(0.001, deadline - time.monotonic()))
                count = link.sock.recv_into(link.reader.space())
                if not count:
                    raise NodeLostError(
                        "the coordinator closed the connection before this node had joined; its log says why"
                    )
                link.reader.fill(count)
        except TimeoutError:
            raise NodeLostError(
                "the coordinator did not take this node in in time; "
                "it is stopped, or other nodes are joining: try again"
            ) from None
        except OSError as error:
            raise NodeLostError(f"the connection to the coordinator broke: {error}") from None
        finally:
            link.sock.setblocking(False)
        return link.reader.fields, link.reader.payload
